"""Every family of transformers that is reduced, against prompts that are shortened by hand."""

import copy

import pytest
import torch

from helpers.shortened_by_hand import answers, by_hand
from helpers.tiny_vlms import FAMILIES, prompts, row_of
from setok_kernels.integrations.transformers import reduce_visual_tokens

COUNTS = [1, 2, 0]
NEW = dict(max_new_tokens=6, do_sample=False)
BYPASS = dict(rate=1.0, exact=True)


def number_of_hooks(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.build()


@pytest.fixture
def batch(family):
    return prompts(family, COUNTS)


@pytest.fixture
def reduced(model):
    """Reduce the model of the module, and restore it after the test."""
    handles = []

    def reduce(**options):
        handles.append(reduce_visual_tokens(model, **options))
        return model

    yield reduce
    for handle in handles:
        handle.restore()


@pytest.mark.parametrize(
    ("options", "positions"),
    [
        (dict(rate=0.2, exact=True), "original"),
        (dict(num_clusters=5), "compact"),
        # Most lines of a grid keep no token, and lose their line break.
        (dict(num_clusters=1, exact=True), "compact"),
        (dict(features="projected", merge="soft", rate=0.3), "original"),
    ],
)
def test_generate_equals_a_prompt_made_by_hand(family, model, batch, reduced, options, positions):
    names = {"projected": "projected", "encoder": "encoded"}
    budget = {**options, "features": names[options.get("features", "encoder")]}
    made = by_hand(model, family, batch, positions, **budget)
    logits = dict(NEW, output_logits=True, return_dict_in_generate=True)
    expected, expected_logits = answers(model, family, made, NEW["max_new_tokens"])
    untouched = model.generate(**batch, **NEW)
    reduced(**options, positions=positions)
    got = model.generate(**batch, **logits)

    length = batch["input_ids"].shape[1]
    assert torch.equal(got.sequences[:, :length], batch["input_ids"])
    assert torch.equal(got.sequences[:, length:], expected)
    for mine, hers in zip(got.logits, expected_logits, strict=True):
        torch.testing.assert_close(mine, hers)
    # The answers depend on the images, and rows differ.
    assert not torch.equal(got.sequences, untouched)
    assert len({tuple(row) for row in got.sequences[:, length:].tolist()}) == len(COUNTS)


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_one_cluster_per_token_is_the_untouched_model(model, batch, reduced, positions):
    labels = batch["input_ids"].clone()
    expected, before = model.generate(**batch, **NEW), model(**batch, labels=labels)
    reduced(**BYPASS, positions=positions)
    after = model(**batch, labels=labels)
    assert torch.equal(model.generate(**batch, **NEW), expected)
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.loss, before.loss)


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_a_batch_equals_its_rows_one_by_one(family, model, batch, reduced, positions):
    reduced(num_clusters=6, positions=positions)
    length = batch["input_ids"].shape[1]
    together = model.generate(**batch, **NEW)[:, length:]
    for row in range(len(COUNTS)):
        alone = row_of(batch, COUNTS, row, family.by_row)
        new = model.generate(**alone, **NEW)[:, alone["input_ids"].shape[1] :]
        assert torch.equal(new[0], together[row])


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_the_loss_equals_that_of_a_prompt_made_by_hand(family, model, reduced, positions):
    batch = prompts(family, COUNTS, side="right")
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    made = by_hand(
        model, family, batch, positions, side="right", generating=False, rate=0.2, exact=True
    )
    expected = model(**made)
    reduced(rate=0.2, exact=True, positions=positions)
    got = model(**batch)
    torch.testing.assert_close(got.loss, expected.loss)
    assert got.logits.shape == expected.logits.shape
    assert got.logits.shape[1] < batch["input_ids"].shape[1]


@pytest.mark.parametrize("merge", ["hard", "soft"])
def test_gradient_reaches_the_vision_encoder(model, batch, merge):
    model = copy.deepcopy(model).train()
    reduce_visual_tokens(model, num_clusters=4, merge=merge)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    tower = [
        parameter.grad
        for name, parameter in model.named_parameters()
        if "vision" in name and "patch_embedding" in name
    ]
    assert tower and all(grad is not None and grad.abs().sum() > 0 for grad in tower)


def test_restore_gives_the_original_bits(model, batch):
    attributes, weights = dict(model.__dict__), copy.deepcopy(model.state_dict())
    base = dict(model.model.__dict__)
    before, answer = model(**batch).logits, model.generate(**batch, **NEW)
    hooks = number_of_hooks(model)
    handle = reduce_visual_tokens(model, rate=0.2)
    assert model(**batch).logits.shape != before.shape
    model.generate(**batch, **NEW)
    handle.restore()
    assert torch.equal(model(**batch).logits, before)
    assert torch.equal(model.generate(**batch, **NEW), answer)
    assert model.__dict__ == attributes and model.model.__dict__ == base
    assert number_of_hooks(model) == hooks
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
