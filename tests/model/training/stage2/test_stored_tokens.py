"""Stages 2 and 3 from stored tokens."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from transformers import SiglipVisionConfig, SiglipVisionModel

from helpers import stored_tasks
from helpers.tiny_setokim import Script, build, picture
from helpers.tiny_stage1 import (
    TINY,
    assert_same_run,
    losses_of,
    run_in_processes,
    tiny_settings,
    write_setok,
)
from helpers.tiny_stage2 import WORLD, stage2_values, write_settings
from setokim import SetokimModel, SetokModel
from setokim.data.conversations import message
from setokim.data.tokens.contents import contents_of
from setokim.tokenizer.modeling_setok import VisualTokens
from setokim.tokenizer.stored_tokens import to_stored
from setokim.training.settings import load_settings
from setokim.training.stage2 import stage as stage_module
from setokim.training.stages import build_stage
from setokim.training.trainer import Trainer

SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 4,
}


@pytest.fixture(scope="module")
def setok(tmp_path_factory):
    return write_setok(tmp_path_factory.mktemp("stage1"))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """Tokenizer with an encoder that has weights."""
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    SiglipVisionModel(SiglipVisionConfig(**SIGLIP)).save_pretrained(folder / "encoder")
    fields = {n: v for n, v in TINY["model"].items() if n not in ("grid", "patch_size")}
    model = SetokModel.from_encoder(str(folder / "encoder"), **fields)
    model.save_pretrained(folder / "setok", max_shard_size="20KB")
    model.processor().save_pretrained(folder / "setok")
    assert len(list((folder / "setok").glob("*.safetensors"))) > 1
    return folder / "setok"


def tokens(setok, world=WORLD, **options):
    """Return the settings of the data of `world` as stored tokens."""
    options = {"model": str(setok)} | world["options"] | options
    return {**world, "kind": "stored-tasks", "options": options}


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """Fit the statistics of channels to few images."""
    monkeypatch.setattr(stage_module, "_FIT_IMAGES", 12)


@pytest.fixture
def settings(setok, tmp_path):
    def load(*overrides, data=None, held_out=None, tokenizer=setok):
        values = stage2_values(tokenizer)
        values |= {"imports": [stored_tasks.__file__], "steps": 2}
        values["generation"] |= {"samples": 2, "max_new_tokens": 3}
        values["data"] = data or values["data"]
        values["held_out"] = {**(held_out or WORLD), "seed": 1, "samples": 3}
        return load_settings(write_settings(tmp_path / "stage2.yaml", values), overrides)

    return load


@pytest.fixture
def one_by_one(monkeypatch):
    """Tokenize each image on its own, as the stored ones are, since batches round differently."""
    tokenize = SetokModel.tokenize

    def alone(self, images):
        if len(images) < 2:
            return tokenize(self, images)
        return VisualTokens.join([tokenize(self, images[i : i + 1]) for i in range(len(images))])

    monkeypatch.setattr(SetokModel, "tokenize", alone)


def run(chosen, out):
    trainer = Trainer(chosen, out)
    trainer.train()
    return trainer


COPYING = ("model.recall_width=4", "model.copy_tokens=true", "losses.copy=1")


@pytest.mark.parametrize(
    ("tokenizer", "kept", "fields"),
    [("setok", 0, ()), ("setok", 5, COPYING), ("siglip", 0, ())],
)
def test_losses_equal_those_from_images(
    settings, tmp_path, one_by_one, tokenizer, kept, fields, request
):
    """Number for number, with the same export, with or without cached tokens of the images."""
    folder = request.getfixturevalue(tokenizer)
    common = ("model.token_order=background", "every.pictures=2", *fields)
    run(settings(*common, f"keep_tokens={kept}", tokenizer=folder), tmp_path / "images")
    data = tokens(folder)
    trainer = run(
        settings(*common, data=data, held_out=data, tokenizer=folder), tmp_path / "tokens"
    )
    assert not trainer.unwrapped.model.setok.has_encoder
    found, expected = (losses_of(tmp_path / name) for name in ("tokens", "images"))
    assert len(found) == 2 and all(line["mask"] > 0 and line["diffusion"] > 0 for line in found)
    assert found == expected
    assert_same_files(tmp_path, "evaluations.jsonl", "model/model.safetensors")
    assert list((tmp_path / "tokens" / "pictures").glob("*.png"))


def assert_same_files(folder, *names):
    for name in names:
        found, expected = ((folder / run / name).read_bytes() for run in ("tokens", "images"))
        assert found == expected, name


def test_half_precision_changes_the_losses_little(settings, setok, tmp_path):
    """Batches of images round differently from single ones; bfloat16 has 8 bits."""
    run(settings(), tmp_path / "images")
    for dtype, bound in (("float32", 1e-4), ("bfloat16", 2e-2)):
        data = tokens(setok, dtype=dtype)
        run(settings(data=data, held_out=data), tmp_path / dtype)
        for x, y in zip(*(losses_of(tmp_path / n) for n in (dtype, "images")), strict=True):
            assert x == pytest.approx(y, rel=bound)
    assert losses_of(tmp_path / "bfloat16") != losses_of(tmp_path / "float32")


def test_a_run_without_images_has_no_encoder(settings, siglip, tmp_path):
    """Its checkpoints lack the weights, and its export has them as they were."""
    chosen = settings(data=tokens(siglip), held_out=tokens(siglip), tokenizer=siglip)
    trainer = run(chosen, tmp_path / "tokens")
    encoder = trainer.unwrapped.model.setok.encoder
    assert not list(encoder.parameters()) and not list(encoder.buffers())
    with pytest.raises(RuntimeError, match="expected a model with its vision encoder"):
        encoder(torch.zeros(1, 3, 24, 24))
    with safe_open(tmp_path / "tokens/checkpoint-00000002/tensors.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "setok.encoder." in name]  # noqa: SIM118
    found = SetokimModel.from_pretrained(tmp_path / "tokens" / "model").setok.state_dict()
    expected = SetokModel.from_pretrained(siglip).state_dict()
    assert any(name.startswith("encoder.") for name in found)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())

    # The third stage reads the encoder of the second from its folder, under other names.
    start = tmp_path / "tokens" / "model"
    follow = ("stage=3", f"start={start}", "llm=null", "setok=null", "model={}", "steps=1")
    for name, data in (("images", None), ("again", tokens(siglip))):
        run(settings(*follow, "losses.diffusion=0", data=data, held_out=data), tmp_path / name)
    files = [
        SetokimModel.from_pretrained(tmp_path / name / "model").state_dict()
        for name in ("images", "again")
    ]
    encoder = [n for n in files[0] if n.startswith("setok.encoder.")]
    assert encoder and files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][n], files[1][n]) for n in encoder)
    for x, y in zip(*(losses_of(tmp_path / n) for n in ("images", "again")), strict=True):
        assert x == pytest.approx(y, rel=1e-4)


def test_an_encoder_that_changes_during_the_run_is_not_exported(settings, siglip, tmp_path):
    folder = tmp_path / "setok"
    shutil.copytree(siglip, folder)
    data = tokens(folder)
    chosen = settings(data=data, held_out=data, tokenizer=folder)
    stage = build_stage(
        chosen, *(contents_of(one.build()) for one in (chosen.data, chosen.held_out))
    )
    model = SetokModel.from_pretrained(folder)
    torch.nn.init.normal_(next(model.encoder.parameters()))
    model.save_pretrained(folder, max_shard_size="20KB")
    with pytest.raises(ValueError, match=f"export: expected the vision encoder in {folder} as it"):
        stage.export(tmp_path / "model")
    shutil.rmtree(folder)
    with pytest.raises(OSError, match=r"config\.json"):
        stage.export(tmp_path / "model")


def test_images_to_encode_anywhere_keep_the_encoder(settings, setok):
    stored, images = tokens(setok), WORLD
    mixed = {
        "kind": "mixture",
        "size": 32,
        "options": {"parts": {n: {**d, "weight": 1} for n, d in (("a", stored), ("b", images))}},
    }
    for data, held_out, expected in (
        (stored, stored, False),
        (stored, images, True),
        (images, stored, True),
        (mixed, stored, True),
    ):
        chosen = settings(data=data, held_out=held_out)
        contents = [contents_of(one.build()) for one in (chosen.data, chosen.held_out)]
        stage = build_stage(chosen, *contents)
        assert stage.model.setok.has_encoder == expected
        assert len(contents[0].stored) == (data is not images)
        assert stage._store is not None


def test_a_batch_of_tokens_and_images(settings, setok, tmp_path, one_by_one):
    """Its losses are those of the images, whatever the order, also with a cache and workers."""
    chosen = settings(data=tokens(setok), held_out=WORLD)
    contents = [contents_of(one.build()) for one in (chosen.data, chosen.held_out)]
    torch.manual_seed(0)
    stage = build_stage(chosen, *contents)
    images, stored = (one.build() for one in (chosen.held_out, settings(data=tokens(setok)).data))
    images = settings().data.build()
    stage.prepare(images)

    def losses(samples):
        torch.manual_seed(1)
        return {n: v.item() for n, v in stage(stage.collator()(samples)).losses.items()}

    expected = losses([images[i] for i in range(6)])
    for pattern in ("ssssss", "sisisi", "issiis", "siiiii"):
        mixed = [{"s": stored, "i": images}[kind][i] for i, kind in enumerate(pattern)]
        # Rows of tokens without masks are left out in one form, which changes sums of masks.
        assert losses(mixed) == pytest.approx(expected, rel=1e-6), pattern


@pytest.mark.parametrize("mixed", [False, True])
def test_a_run_resumes_exactly(settings, setok, tmp_path, mixed):
    """With images in a mixture, with their cache and a worker, and without an encoder."""
    part = {"weight": 1}
    parts = {"tokens": tokens(setok) | part, "images": {**WORLD, "seed": 5} | part}
    mixture = {"kind": "mixture", "size": 32, "options": {"parts": parts}}
    common = ("steps=4", "every.checkpoint=2", "keep=9")
    common += ("keep_tokens=3", "workers=1") if mixed else ()

    def trained(out, **options):
        data = mixture if mixed else tokens(setok)
        trainer = Trainer(settings(*common, data=data, held_out=tokens(setok)), out, **options)
        assert trainer.unwrapped.model.setok.has_encoder == mixed
        trainer.train()

    trained(tmp_path / "whole")
    for name in ("checkpoint-00000002", "losses.jsonl", "evaluations.jsonl"):
        source, target = tmp_path / "whole" / name, tmp_path / "on" / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    lines = (tmp_path / "on/losses.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "on/losses.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "on/evaluations.jsonl").unlink()
    trained(tmp_path / "on", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "on")


@pytest.mark.slow
def test_two_processes_match_one(settings, setok, tmp_path, threads, monkeypatch):
    """Sharded or not; the noise of the diffusion loss differs between processes."""
    threads(1)
    # The processes do not know of a changed number.
    monkeypatch.undo()
    data = {**tokens(setok), "samples": 12}
    common = ("losses.diffusion=0", "condition_dropout=0")
    run(settings(*common, "batch_size=4", data=data, held_out=data), tmp_path / "one")
    for parallel in ("ddp", "fsdp"):
        settings(data=data, held_out=data)
        given = (*common, "batch_size=2", f"parallel={parallel}")
        done = run_in_processes(
            tmp_path, tmp_path / parallel, *given, world=2, config=tmp_path / "stage2.yaml"
        )
        assert done.returncode == 0, done.stderr
        for x, y in zip(*(losses_of(tmp_path / n) for n in ("one", parallel)), strict=True):
            assert y == pytest.approx(x, rel=1e-4)


def test_a_tokenizer_trains_from_features(settings, setok, tmp_path, one_by_one):
    common = ("train=[llm, tokenizer]",)
    run(settings(*common), tmp_path / "images")
    data = tokens(setok, what=["tokens", "features"])
    trainer = run(settings(*common, data=data, held_out=data), tmp_path / "tokens")
    assert not trainer.unwrapped.model.setok.has_encoder
    for x, y in zip(*(losses_of(tmp_path / n) for n in ("tokens", "images")), strict=True):
        # Features of a batch go through the merger together.
        assert x == pytest.approx(y, rel=1e-4)
    before = SetokModel.from_pretrained(setok).merger.state_dict()
    after = trainer.unwrapped.model.setok.merger.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_features_alone_are_tokenized(settings, setok, tmp_path, one_by_one):
    """The tokens are not used; those of an encoder alone have no clusters either."""
    run(settings(), tmp_path / "images")
    data = tokens(setok, what=["features"])
    run(settings(data=data, held_out=data), tmp_path / "tokens")
    for x, y in zip(*(losses_of(tmp_path / n) for n in ("tokens", "images")), strict=True):
        assert x == pytest.approx(y, rel=1e-4)


ALONE = "losses.mask=0"


@pytest.mark.parametrize(
    ("what", "overrides", "message"),
    [
        (
            ["tokens"],
            (),
            r"losses\.mask: expected 0 for data of stored tokens without masks and features, got 1",
        ),
        (["tokens", "masks"], (), r"losses\.mask: .* without features, got 1"),
        (["labels"], (), r"data: expected stored tokens or features, got labels alone"),
        (["tokens", "features"], (), r"losses\.mask: .* without masks, got 1"),
        (
            ["tokens", "labels", "features"],
            (ALONE, "losses.names=0.5", "model.name_regions=true"),
            r"losses\.names: expected 0 for data of stored tokens without masks, got 0\.5",
        ),
        (
            ["tokens", "features"],
            (ALONE, "losses.reconstruction=1", "train=[detokenizer]"),
            r"losses\.reconstruction: expected 0 for data of stored tokens, .* got 1",
        ),
        (
            ["tokens", "masks"],
            (ALONE, "train=[tokenizer]"),
            r"train: expected no tokenizer with data of stored tokens without features, got",
        ),
    ],
)
def test_what_needs_more_than_is_stored_is_refused(settings, setok, what, overrides, message):
    chosen = settings(*overrides, data=tokens(setok, what=what))
    with pytest.raises(ValueError, match=f"^{message}"):
        build_stage(chosen, contents_of(chosen.data.build()))


def test_a_trained_tokenizer_needs_held_out_features(settings, setok):
    held_out = tokens(setok, what=["tokens"])
    chosen = settings("train=[tokenizer]", held_out=held_out)
    message = r"^train: expected no tokenizer with held_out of stored tokens without features"
    with pytest.raises(ValueError, match=message):
        build_stage(chosen, held_out=contents_of(chosen.held_out.build()))


@pytest.mark.parametrize("what", [["tokens"], ["tokens", "masks"], ["features"]])
def test_held_out_tokens_need_no_more_than_their_tokens(settings, setok, what, tmp_path):
    """Without patches nothing is segmented, although the model would generate masks."""
    tasks = {"vqa": 1.0, "segment": 1.0, "edit": 1.0, "generate": 1.0, "text": 1.0}
    data = tokens(setok, what=what, tasks=tasks)
    chosen = (ALONE, "every.pictures=1", "generation.samples=12", "held_out.samples=12", "steps=1")
    run(settings(*chosen, data=data, held_out=data), tmp_path / "run")
    [line] = map(json.loads, (tmp_path / "run/evaluations.jsonl").read_text().splitlines())
    assert line["segment_text_loss"] > 0 and line["edit_text_loss"] > 0, sorted(line)
    assert line["edit_success"] is not None
    assert ("ciou" in line) == (what == ["features"]), sorted(line)
    assert len(list((tmp_path / "run/pictures").glob("*.png"))) == 1


def test_no_mask_is_generated_without_patches(setok):
    model, processor = build()
    visual = model.setok.tokenize([picture(0)])
    script = Script(processor, "[SEG] [SEG]")
    model.logits = script
    prompt = [[message("user", "the red ball", picture(0))]]
    inputs = processor(prompt, add_generation_prompt=True, padding_side="left")
    for chosen, number in ((("tokens", "masks", "features"), 2), (("tokens", "masks"), 0)):
        script.states.clear()
        inputs["pixel_values"] = to_stored(visual, [(24, 24)], chosen, torch.float32)
        [answer] = model.generate(**inputs, max_new_tokens=4)
        assert len(answer.masks) == answer.ids.count(model.config.segment_id) == number


def test_tokens_of_another_tokenizer_are_refused(settings, setok, tmp_path):
    torch.manual_seed(1)
    model = SetokModel.from_pretrained(setok)
    torch.nn.init.normal_(model.merger.project_out.bias)
    model.save_pretrained(tmp_path / "other")
    other = tokens(tmp_path / "other")
    for name, chosen in (
        ("data", settings(data=other)),
        ("held_out", settings(held_out=other)),
        (
            "data",
            settings(
                data={
                    "kind": "mixture",
                    "size": 32,
                    "options": {
                        "parts": {"a": {**WORLD, "weight": 1}, "b": {**other, "weight": 1}}
                    },
                }
            ),
        ),
    ):
        message = rf"^{name}: expected tokens of the tokenizer in {setok}, got those of another "
        with pytest.raises(ValueError, match=message + r"\(merger differs\)$"):
            Trainer(chosen, tmp_path / "run")
    # A trained merger may differ from the one that made the tokens: they are not read.
    chosen = settings("train=[tokenizer]", data=other)
    build_stage(chosen, contents_of(chosen.data.build()))
    config = json.loads((tmp_path / "other/config.json").read_text())
    config["feature_weights"], config["position_weight"] = [1.0, 1.0, 1.0, 1.0], 0.5
    (tmp_path / "other/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"\(encoder and clustering and merger differ\)$"):
        Trainer(settings(data=other), tmp_path / "run")
    with pytest.raises(ValueError, match=r"\(encoder differs\)$"):
        Trainer(settings("train=[tokenizer]", data=other), tmp_path / "run")


def test_a_trainable_encoder_needs_images(settings, siglip, tmp_path):
    shutil.copytree(siglip, tmp_path / "trainable")
    path = tmp_path / "trainable" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"encoder_trainable": True}))
    data = tokens(tmp_path / "trainable")
    chosen = settings("train=[tokenizer]", data=data, tokenizer=tmp_path / "trainable")
    with pytest.raises(ValueError, match=r"^train: expected no tokenizer with a trainable encoder"):
        build_stage(chosen, contents_of(chosen.data.build()))


def test_sharded_processes_need_batches_of_one_kind(settings, setok):
    parts = {"a": {**WORLD, "weight": 1}, "b": {**tokens(setok), "weight": 1}}
    data = {"kind": "mixture", "size": 32, "options": {"parts": parts}}
    chosen = settings("parallel=fsdp", data=data)
    with pytest.raises(ValueError, match=r"^parallel: expected ddp for data of both stored"):
        build_stage(chosen, contents_of(chosen.data.build()))


@pytest.mark.parametrize("name", ["data", "held_out"])
def test_stage_one_has_no_use_for_tokens(setok, tmp_path, name):
    tiny_settings(tmp_path)
    world = {"kind": "stored-tasks", "size": 32, "options": {"model": str(setok), "captions": True}}
    given = f"{name}={json.dumps(world | {'samples': 6})}"
    chosen = tiny_settings(tmp_path, given, f"imports=[{stored_tasks.__file__}]")
    with pytest.raises(ValueError, match=f"^{name}: expected images for stage 1, .* got stored"):
        Trainer(chosen, tmp_path / "run")


def test_captioned_images_of_tokens_have_pairs(settings, setok, tmp_path):
    options = {"model": str(setok), "captions": True, "pairs": "both"}
    world = {"kind": "stored-tasks", "size": 32, "seed": 0, "options": options}
    run(settings(data=world, held_out=world), tmp_path / "tokens")
    alone = {**world, "options": {**options, "pairs": None}}
    with pytest.raises(TypeError, match=r"^data: expected conversations, which .* pairs .* Sample"):
        Trainer(settings(data=alone, held_out=world), tmp_path / "alone")
    world = {"kind": "shapes-world", "size": 32, "seed": 0, "options": {"pairs": "both"}}
    run(settings(data=world, held_out=world), tmp_path / "images")
    for x, y in zip(*(losses_of(tmp_path / n) for n in ("tokens", "images")), strict=True):
        assert x == pytest.approx(y, rel=1e-4)
