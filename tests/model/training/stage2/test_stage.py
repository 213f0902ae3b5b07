import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from helpers.rounding import assert_same_but_for_rounding
from helpers.tiny_setokim import build, picture
from helpers.tiny_stage1 import change_settings, losses_of, run_in_processes, write_setok
from helpers.tiny_stage2 import stage2_values, write_settings
from setok_kernels.extras import MissingExtraError
from setokim import SetokimModel, SetokimProcessor, SetokModel
from setokim.data import build_dataset
from setokim.training import load_checkpoint
from setokim.training.settings import load_settings
from setokim.training.stage2.token_store import TokenStore
from setokim.training.stages import build_stage
from setokim.training.trainer import Trainer
from setokim.vlm.diffusion_head import signal_levels


@pytest.fixture(scope="module")
def setok(tmp_path_factory):
    return write_setok(tmp_path_factory.mktemp("stage1"))


@pytest.fixture
def settings(setok, tmp_path):
    def load(*overrides):
        path = write_settings(tmp_path / "stage2.yaml", stage2_values(setok))
        return load_settings(path, overrides)

    return load


@pytest.fixture
def batch_of():
    def make(stage, **options):
        dataset = build_dataset("shapes-tasks", size=32, seed=3, objects=(1, 3), turns=2, **options)
        stage.prepare(dataset)
        return stage.collator()([dataset[i] for i in range(6)])

    return make


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ({"text": 1.0}, {"diffusion": 0.0, "mask": 0.0}),
        ({"segment": 1.0}, {"diffusion": 0.0}),
        ({"generate": 1.0}, {"mask": 0.0}),
    ],
)
def test_losses_of_absent_tasks_are_zero(settings, batch_of, tasks, expected):
    torch.manual_seed(0)
    stage = build_stage(settings())
    batch_of(stage)  # fits the head's channel statistics
    found = stage(batch_of(stage, tasks=tasks)).losses
    assert set(found) == {"text", "diffusion", "mask"}
    for name, value in found.items():
        assert (float(value) == 0) == (name in expected), name
    # Each trainable parameter has a gradient, so that no process waits for another.
    sum(found.values()).backward()
    assert all(p.grad is not None for p in stage.parameters() if p.requires_grad)


def test_reconstruction_without_an_image_is_zero(settings, batch_of):
    torch.manual_seed(0)
    stage = build_stage(settings("train=[tokenizer, detokenizer]", "losses.reconstruction=1"))
    batch_of(stage)
    assert stage(batch_of(stage, tasks={"vqa": 1.0})).losses["reconstruction"] > 0
    found = stage(batch_of(stage, tasks={"text": 1.0})).losses
    assert found["reconstruction"] == 0
    sum(found.values()).backward()
    detokenizer = stage.model.setok.detokenizer
    assert not [name for name, p in detokenizer.named_parameters() if p.grad is None]


def test_only_rows_that_generate_images_lose_their_prompt(settings, batch_of, monkeypatch):
    stage = build_stage(settings("condition_dropout=1"))
    batch = batch_of(stage, tasks={"generate": 1.0, "caption": 1.0})
    dropped, forward = [], stage.model.forward

    def spied(*arguments, **named):
        dropped.append(named["unconditional"])
        return forward(*arguments, **named)

    monkeypatch.setattr(stage.model, "forward", spied)
    stage(batch)
    generates = (batch["labels"] == stage.model.config.image_token_id).any(1)
    assert generates.any() and not generates.all()
    assert dropped[0].tolist() == generates.tolist()


def test_images_are_tokenized_once(settings, batch_of, monkeypatch):
    tasks = {"generate": 1.0, "segment": 1.0, "caption": 1.0, "edit": 1.0, "text": 1.0}

    def losses(stage):
        torch.manual_seed(1)
        return {name: float(value) for name, value in stage(batch).losses.items()}

    torch.manual_seed(0)
    stage = build_stage(settings("diffusion_noisiest=1"))
    batch = batch_of(stage, tasks=tasks)
    expected = losses(stage)
    stage._store = store = TokenStore(2)
    batch["pixel_values"] = batch_of(stage, tasks=tasks)["pixel_values"]
    sizes, tokenize = [], stage.model.setok.tokenize
    monkeypatch.setattr(
        stage.model.setok, "tokenize", lambda pixels: sizes.append(len(pixels)) or tokenize(pixels)
    )
    number = len(batch["pixel_values"])
    assert number > 2
    for _ in range(2):
        assert losses(stage) == pytest.approx(expected, rel=1e-5)
    # The first two are cached, the others are tokenized again.
    assert sizes == [number, number - 2] and len(store) == 2


def test_equal_images_and_no_images_in_a_store(setok):
    model = SetokModel.from_pretrained(setok)
    store = TokenStore(9)
    one, other = picture(0), picture(1)
    found = store.tokenize(model, [one, other, one.copy()])
    assert len(store) == 2
    expected = model.tokenize([one, other, one])
    # The store tokenizes two images in a batch instead of three.
    assert_same_but_for_rounding(found.tokens, expected.tokens)
    assert_same_but_for_rounding(found.features, expected.features)
    assert torch.equal(found.labels, expected.labels) and found.grid == expected.grid
    # Neighbours would take 40 % of the memory, and seeds are still there.
    assert found.clusters.decisions.knn.shape[-1] == 0
    assert torch.equal(found.clusters.decisions.seeds, expected.clusters.decisions.seeds)
    assert len(store.tokenize(model, []).tokens) == 0


def test_masks_that_are_cut_off_have_no_loss(settings, batch_of):
    torch.manual_seed(0)
    stage = build_stage(settings("losses.text=0", "losses.diffusion=0"))
    batch = batch_of(stage, tasks={"segment": 1.0})
    output = stage.model(
        **{n: batch[n] for n in ("input_ids", "attention_mask", "pixel_values")},
        labels=batch["labels"],
    )
    rows, positions = (output.spliced.segment >= 0).nonzero().unbind(1)
    # The rows end before the second mask of the first row with two.
    row = int(rows[:-1][rows[:-1] == rows[1:]][0])
    length = int(positions[rows == row][1])
    assert ((rows == row) & (positions < length)).sum() == 1
    stage.settings = settings("losses.text=0", "losses.diffusion=0", f"max_length={length}")
    kept = positions < length
    expected = stage(batch).losses["mask"]
    other = batch["masks"].clone()
    other[~kept] ^= True
    assert stage(batch | {"masks": other}).losses["mask"] == expected
    other[kept] ^= True
    assert stage(batch | {"masks": other}).losses["mask"] != expected


def test_trained_parts(settings):
    stage = build_stage(settings("train=[]"))
    trained = {name.split(".")[1] for name, p in stage.named_parameters() if p.requires_grad}
    assert trained == {"project_in", "special_in", "special_out", "head", "segmentation"}
    stage = build_stage(settings("train=[llm, tokenizer]", "losses.diffusion=0"))
    trained = {".".join(n.split(".")[1:3]) for n, p in stage.named_parameters() if p.requires_grad}
    assert {"llm.model", "llm.lm_head", "setok.merger"} <= trained
    assert not any(name.startswith(("head", "setok.detok", "setok.to_con")) for name in trained)


def test_visual_parts_have_their_own_rate(settings):
    stage = build_stage(settings())
    groups = stage.parameter_groups(settings().optimizer)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate[id(stage.model.head.network.project_out.weight)] == 2e-3
    assert rate[id(stage.model.project_in[0].weight)] == 2e-3
    assert rate[id(next(stage.model.llm.parameters()))] == 1e-3


def test_the_pointer_head_is_trained_with_the_diffusion_head(settings):
    stage = build_stage(settings("model.recall_width=4"))
    groups = stage.parameter_groups(settings().optimizer)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate[id(stage.model.recall.query.weight)] == 2e-3
    frozen = build_stage(settings("model.recall_width=4", "losses.diffusion=0"))
    assert not any(p.requires_grad for p in frozen.model.recall.parameters())


def test_muon_trains_hidden_matrices(settings):
    chosen = settings("optimizer.kind=muon", "optimizer.weight_decay=0")
    stage = build_stage(chosen)
    groups = stage.parameter_groups(chosen.optimizer)
    hidden = {id(p) for group in groups if group.get("hidden") for p in group["params"]}
    names = {name for name, p in stage.named_parameters() if id(p) in hidden}
    assert {name.split(".")[1] for name in names} == {"project_in", "llm"}
    assert "model.llm.model.layers.0.mlp.up_proj.weight" in names
    assert not any(name.endswith("bias") or "lm_head" in name or "embed" in name for name in names)
    assert sum(len(group["params"]) for group in groups) == len(
        [p for p in stage.parameters() if p.requires_grad]
    )


def test_unknown_fields_are_named(settings):
    with pytest.raises(ValueError, match=r"model\.head_widht: expected one of .*head_width"):
        build_stage(settings("model.head_widht=3"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (None, None),
        ("model.safetensors", None),
        ("model.safetensors", b""),
        ("model.safetensors", b"x" * 999),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("preprocessor_config.json", b"{"),
        ("tokenizer.json", b"{"),
    ],
)
@pytest.mark.parametrize("setting", ["setok", "start"])
def test_a_missing_or_damaged_model_is_named(settings, setok, tmp_path, setting, name, content):
    folder = tmp_path / "model"
    if setting == "setok":
        if name in ("preprocessor_config.json", "tokenizer.json"):
            # The tokenizer alone reads neither: its configuration has the image sizes.
            return
        if name is not None:
            shutil.copytree(setok, folder)
        chosen = settings(f"setok={folder}")
    else:
        if name is not None:
            for part in build():
                part.save_pretrained(folder)
        chosen = settings("stage=3", f"start={folder}", "llm=null", "setok=null", "model={}")
    if content is not None:
        (folder / name).write_bytes(content)
    elif name is not None:
        (folder / name).unlink()
    with pytest.raises(
        ValueError, match=f"^{setting}: expected a complete model, got {folder}: "
    ) as e:
        build_stage(chosen)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.slow
def test_stages_two_and_three_in_a_row(settings, tmp_path):
    two, three = tmp_path / "two", tmp_path / "three"
    metrics = Trainer(settings("every.pictures=3"), two).train()
    expected = {"vqa_accuracy", "vqa_chance", "vqa_language_only", "caption_accuracy", "seconds"}
    assert expected <= set(metrics) and all(v is not None for v in metrics.values())
    assert [line["step"] for line in losses_of(two)] == [1, 2, 3]
    assert list((two / "pictures").glob("*.png"))
    follow = settings("stage=3", f"start={two / 'model'}", "llm=null", "setok=null", "model={}")
    before = SetokimModel.from_pretrained(two / "model").state_dict()
    stage = build_stage(follow)
    assert all(torch.equal(before[n], v) for n, v in stage.model.state_dict().items())
    Trainer(follow, three).train()
    SetokimProcessor.from_pretrained(three / "model")
    after = SetokimModel.from_pretrained(three / "model").state_dict()
    assert any(not torch.equal(before[n], after[n]) for n in before if n.startswith("llm."))
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("setok."))


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["null", "{rank: 2, targets: [q_proj, v_proj]}"])
def test_two_sharded_processes_match_one(settings, tmp_path, threads, lora):
    """One process resumes from their checkpoint too. The diffusion loss is off, because its noise
    differs between processes."""
    threads(1)
    common = ("steps=4", "accumulation=2", "losses.diffusion=0", "every.checkpoint=2", "keep=9")
    common += ("losses.reconstruction=0.5", "train=[llm, tokenizer, detokenizer]", f"lora={lora}")
    common += ("activation_checkpointing=true", "condition_dropout=0", "held_out.samples=4")
    alone = Trainer(settings(*common, "batch_size=4"), tmp_path / "one")
    alone.train()
    sharded = (*common, "batch_size=2", "parallel=fsdp")
    config = tmp_path / "stage2.yaml"
    done = run_in_processes(tmp_path, tmp_path / "two", *sharded, world=2, config=config)
    assert done.returncode == 0, done.stderr
    one, two = (losses_of(tmp_path / name) for name in ("one", "two"))
    assert [line["step"] for line in two] == [1, 2, 3, 4]
    for x, y in zip(one, two, strict=True):
        assert y == pytest.approx(x, rel=1e-4)
    files = (tmp_path / "two" / "checkpoint-00000002").glob("tensors-*")
    sizes = [sum(t.numel() for t in load_file(f).values()) for f in sorted(files)]
    assert len(sizes) == 2 and 0.4 < sizes[1] / sum(sizes) < 0.5

    shutil.copytree(tmp_path / "two/checkpoint-00000002", tmp_path / "on/checkpoint-00000002")
    change_settings(tmp_path / "on/checkpoint-00000002", batch_size=4)
    follow = settings(*common, "batch_size=4", "parallel=fsdp")
    resumed = Trainer(follow, tmp_path / "on", resume=True)
    assert resumed.step == 2 and resumed.sharded is None
    written = load_checkpoint(tmp_path / "two/checkpoint-00000002")[0]
    for name, value in resumed.unwrapped.state_dict().items():
        assert torch.equal(value, written[f"modules.stage.{name}"]), name
    resumed.train()
    for x, y in zip(one[2:], losses_of(tmp_path / "on"), strict=True):
        assert y == pytest.approx(x, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [False, True])
def test_sharding_does_not_change_the_random_numbers(settings, tmp_path, recipe):
    """Noise and dropout included: each process has its own generator in both cases."""
    common = ("steps=3", "batch_size=3", "condition_dropout=0.5", "held_out.samples=4")
    if recipe:
        model, processor = build(code_dim=4)
        model.setok.save_pretrained(tmp_path / "codes")
        processor.image_processor.save_pretrained(tmp_path / "codes")
        fields = ("recall_width: 8", "copy_tokens: true", "answer_order: before")
        fields += ("token_order: background", "name_regions: true")
        common += (f"setok={tmp_path / 'codes'}", f"model={{{', '.join(fields)}}}")
        common += ("losses.copy=1", "losses.names=1")
    settings()
    config = tmp_path / "stage2.yaml"
    for parallel in ("ddp", "fsdp"):
        given = (*common, f"parallel={parallel}")
        done = run_in_processes(tmp_path, tmp_path / parallel, *given, world=2, config=config)
        assert done.returncode == 0, done.stderr
    for x, y in zip(*(losses_of(tmp_path / p) for p in ("ddp", "fsdp")), strict=True):
        assert x["diffusion"] > 0 and y == pytest.approx(x, rel=1e-4)


def test_generation_needs_its_package_from_the_start(settings, monkeypatch):
    """Without generation the package is not needed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    signal_levels.cache_clear()
    with pytest.raises(MissingExtraError, match=r"needs diffusers: .*\[generate\]"):
        build_stage(settings())
    build_stage(settings("losses.diffusion=0"))
