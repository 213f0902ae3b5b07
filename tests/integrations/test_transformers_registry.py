"""Registration of families, and errors of reduced models."""

import importlib.metadata
import subprocess
import sys

import pytest
import torch
import transformers

import setok_kernels as sk
from helpers.tiny_vlms import FAMILIES, IMAGE, prompts
from setok_kernels.integrations.transformers import (
    Encoded,
    Family,
    Modality,
    reduce,
    reduce_visual_tokens,
    register_family,
    registered_families,
    registry,
    restore,
)
from setok_kernels.integrations.transformers.positions import close_gaps
from setok_kernels.integrations.transformers.prompt import shorten

LLAVA = FAMILIES["llava"]
NEW = dict(max_new_tokens=2, do_sample=False)


@pytest.fixture
def batch():
    return prompts(LLAVA, [1, 1])


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))


class OwnConfig(transformers.LlavaConfig):
    model_type = "own_llava"


def own_model():
    config = LLAVA.build().config.to_dict()
    config.pop("model_type")
    model = transformers.LlavaForConditionalGeneration(OwnConfig(**config))
    model.generation_config.eos_token_id = None
    return model.eval()


def test_the_package_imports_no_transformers():
    code = (
        "import sys, setok_kernels.integrations.transformers as t; "
        "t.registered_families(); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_families_of_the_documentation_are_registered():
    assert set(FAMILIES) <= set(registered_families())


def test_an_unknown_family_says_what_to_register(own_registry, batch):
    model = own_model()
    with pytest.raises(
        ValueError, match=r"got 'own_llava' .*register_family\(Family\(model_type='own_"
    ):
        reduce_visual_tokens(model, rate=0.5)
    image = Modality(
        placeholder="image_token_id",
        pixels="pixel_values",
        function="get_image_features",
        encoder="multi_modal_projector",
    )
    register_family(Family(model_type="own_llava", modalities=(image,)))
    handle = reduce_visual_tokens(model, rate=0.5, exact=True)
    model.generate(**batch, **NEW)
    assert handle.counts == [(36, 18), (36, 18)]
    with pytest.raises(ValueError, match="family: expected a model_type that is not registered"):
        register_family(Family(model_type="own_llava", modalities=(image,)))
    with pytest.raises(TypeError, match="family: expected a Family, got str"):
        register_family("own_llava")


def test_a_family_may_attach_itself(own_registry):
    class Handle:
        def restore(self):
            pass

    attached = []

    def attach(model, family, options):
        attached.append((model, family.model_type, options.rate))
        return Handle()

    register_family(Family(model_type="own_llava", modalities=(), attach=attach))
    model = own_model()
    assert isinstance(reduce_visual_tokens(model, rate=0.5), Handle)
    assert attached == [(model, "own_llava", 0.5)]


def test_planes_are_merged_with_the_same_clusters(own_registry, model, batch):
    """DeepStack features: here the encoder's, as one more plane of the output."""
    outputs = []

    def encode(base, modality, inputs):
        output = base.get_image_features(inputs["pixel_values"], return_dict=True)
        features = output.hidden_states[-2][:, 1:].flatten(0, 1)
        output.hidden_states = [output.hidden_states[-2][:, 1:].flatten(0, 1)]
        tokens = torch.cat(output.pooler_output)
        outputs.append(features)
        return Encoded(
            output=output,
            tokens=tokens,
            features=features,
            items=[36, 36],
            groups=[36, 36],
            planes={"hidden_states": [features]},
        )

    family = registered_families()["llava"]
    image = Modality(
        placeholder="image_token_id",
        pixels="pixel_values",
        function="get_image_features",
        encoder="multi_modal_projector",
        encode=encode,
    )
    registry._FAMILIES["llava"] = Family(model_type=family.model_type, modalities=(image,))
    handle = reduce_visual_tokens(model, rate=0.2, exact=True)
    call = handle.prepare(batch, generating=False)
    plane = call.with_outputs()["mm_encoder_outputs"]["image"].hidden_states[0]
    out = sk.cluster_tokens(outputs[0].unflatten(0, (2, 36)), rate=0.2, exact=True)
    merged = sk.merge_tokens(outputs[0].unflatten(0, (2, 36)), out)
    order = out.decisions.seeds.argsort(1)
    expected = merged.gather(1, order[:, :, None].expand(-1, -1, merged.shape[-1]))
    assert torch.equal(plane, expected.flatten(0, 1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(config=3), TypeError, "config: expected a ClusterConfig, got int"),
        (dict(rate=0.5, num_clusters=3), ValueError, "rate: expected None with num_clusters"),
        (dict(rate=1.5), ValueError, "rate: expected at most 1, got 1.5"),
        (dict(rate=0.0), ValueError, "rate: expected more than 0"),
        (dict(num_clusters=0), ValueError, "num_clusters: expected at least 1, got 0"),
        (dict(num_clusters=0.5), TypeError, "num_clusters: expected an int"),
        (dict(exact=1), TypeError, "exact: expected a bool, got int"),
        (
            dict(exact=True, config=sk.ClusterConfig(distinct_seeds=False)),
            ValueError,
            "exact: expected config.distinct_seeds=True",
        ),
        (dict(features="both"), ValueError, "features: expected one of encoder, projected"),
        (dict(merge="mean"), ValueError, "merge: expected one of hard, soft, got 'mean'"),
        (dict(positions=None), ValueError, "positions: expected one of compact, original"),
    ],
)
def test_options_are_checked(model, options, error, message):
    with pytest.raises(error, match=message):
        reduce_visual_tokens(model, **options)
    assert reduce.ATTRIBUTE not in model.__dict__


def test_models_are_checked(model):
    with pytest.raises(TypeError, match="model: expected a model of transformers, got str"):
        reduce_visual_tokens("llava", rate=0.5)
    with pytest.raises(
        ValueError, match=r"model: expected model_type .*llava.*got None \(Linear\)"
    ):
        reduce_visual_tokens(torch.nn.Linear(2, 2), rate=0.5)
    with pytest.raises(ValueError, match=r"model: expected one before torch.compile"):
        reduce_visual_tokens(torch.compile(model, backend="eager"), rate=0.5)
    with pytest.raises(ValueError, match="model: expected one that reduce_visual_tokens changed"):
        restore(model)
    handle = reduce_visual_tokens(model, rate=0.5)
    for part in (model, model.model):
        if part is model:
            with pytest.raises(ValueError, match="model: expected one with all visual tokens"):
                reduce_visual_tokens(part, rate=0.5)
    handle.restore()
    with pytest.raises(RuntimeError, match="model: expected one that this handle reduced"):
        handle.restore()


def test_a_method_replaced_since_is_not_lost(model):
    handle = reduce_visual_tokens(model, rate=0.5)
    ours, model.forward = model.forward, lambda **inputs: None
    with pytest.raises(RuntimeError, match="forward: expected the method of reduce_visual_tokens"):
        handle.restore()
    model.forward = ours
    handle.restore()


def test_a_method_replaced_before_runs_and_comes_back(model, batch):
    calls, own = [], model.forward

    def forward(*args, **kwargs):
        calls.append(kwargs["input_ids"].shape)
        return own(*args, **kwargs)

    model.forward = forward
    handle = reduce_visual_tokens(model, rate=0.5, exact=True)
    model(**batch)
    assert calls == [(2, batch["input_ids"].shape[1] - 18)]
    handle.restore()
    assert model.forward is forward


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(input_ids=None, inputs_embeds=torch.zeros(2, 4, 32)), "input_ids: expected shape"),
        (dict(inputs_embeds=torch.zeros(2, 4, 32)), "inputs_embeds: expected None with images"),
        (dict(logits_to_keep=torch.tensor([1])), "logits_to_keep: expected an int"),
        (dict(cu_seq_lens_q=torch.tensor([0, 4])), "cu_seq_lens_q: expected None"),
        (dict(attention_mask=torch.ones(2, 3)), "attention_mask: expected shape"),
        (dict(attention_mask={"full_attention": None}), "attention_mask: expected shape"),
        (dict(labels=torch.ones(2, 3).long()), "labels: expected shape"),
    ],
)
def test_arguments_of_calls_are_checked(model, batch, change, message):
    reduce_visual_tokens(model, rate=0.5)
    with pytest.raises(ValueError, match=message):
        model(**{**batch, **change})


def test_placeholders_and_tokens_must_match(model, batch):
    reduce_visual_tokens(model, rate=0.5)
    ids = batch["input_ids"].clone()
    ids[ids == IMAGE] = 5
    with pytest.raises(ValueError, match=r"input_ids: expected 72 tokens 90, .*, got 0"):
        model.generate(**{**batch, "input_ids": ids}, **NEW)
    batch["pixel_values"] = batch["pixel_values"][:1]
    with pytest.raises(ValueError, match=r"input_ids: expected 36 tokens 90, .*, got 72"):
        model(**batch)


def test_a_cache_of_a_shorter_prompt_is_not_continued(model, batch):
    reduce_visual_tokens(model, rate=0.5)
    output = model.generate(**batch, **NEW, return_dict_in_generate=True)
    cache, ids = output.past_key_values, output.sequences
    with pytest.raises(ValueError, match="past_key_values: expected an empty cache with images"):
        model.generate(ids, pixel_values=batch["pixel_values"], past_key_values=cache, **NEW)
    with pytest.raises(ValueError, match="past_key_values: expected an empty cache for a prompt"):
        model.generate(ids, past_key_values=cache, **NEW)


def test_original_positions_need_a_mask_beside_position_ids(model, batch):
    reduce_visual_tokens(model, rate=0.5, positions="original")
    positions = torch.arange(batch["input_ids"].shape[1]).expand(2, -1)
    del batch["attention_mask"]
    with pytest.raises(ValueError, match="attention_mask: expected a mask with position_ids"):
        model(**batch, position_ids=positions)


@pytest.mark.parametrize("version", [None, "5.16.3", "6.0.0", "4.57.1"])
def test_versions_of_transformers_are_checked(monkeypatch, model, version):
    def found(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    reduce.check_version.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", found)
    got = "none" if version is None else version
    with pytest.raises(ImportError, match=f"transformers: expected >=5.17,<6, got {got}"):
        reduce_visual_tokens(model, rate=0.5)
    monkeypatch.undo()
    reduce_visual_tokens(model, rate=0.5)


def test_padding_goes_to_the_side_that_has_it():
    ids = torch.tensor([[1, 1, 9, 9, 3], [4, 9, 9, 9, 5]])
    keep = torch.tensor([True, False, True, False, False])
    left = shorten(ids, (ids != 1).long(), [(9, keep)], "right")
    assert left.apply("input_ids", ids, 0).tolist() == [[0, 9, 3], [4, 9, 5]]
    right = shorten(ids.flip(1), (ids.flip(1) != 1).long(), [(9, keep)], "left")
    assert right.apply("input_ids", ids.flip(1), 0).tolist() == [[3, 9, 0], [5, 9, 4]]
    for side, expected in (("left", [[0, 4, 9], [9, 9, 5]]), ("right", [[4, 9, 0], [9, 9, 5]])):
        bare = shorten(torch.tensor([[4, 9, 9], [9, 9, 5]]), None, [(9, keep[[0, 1, 0, 0]])], side)
        assert bare.apply("input_ids", torch.tensor([[4, 9, 9], [9, 9, 5]]), 0).tolist() == expected


def test_gaps_close_within_each_sequence():
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2], [0, 0, 0, 1, 2, 3, 4]])
    keep = torch.tensor([[1, 0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 1, 0, 1]]).bool()
    closed = close_gaps(positions, keep)
    assert closed[0, keep[0]].tolist() == [0, 1, 0, 1]
    assert closed[1, keep[1]].tolist() == [0, 0, 0, 1, 2]
