"""Training of token codes from a model of stage 1."""

import json

import pytest
import torch
import yaml
from PIL import Image

from helpers.tiny_setokim import picture
from helpers.tiny_stage1 import TINY, losses_of, write_setok
from setokim import SetokModel, SetokProcessor
from setokim.training.settings import CodesSettings, load_settings
from setokim.training.stages import build_stage
from setokim.training.trainer import Trainer


@pytest.fixture(scope="module")
def setok(tmp_path_factory):
    return write_setok(tmp_path_factory.mktemp("stage1"))


@pytest.fixture
def settings(setok, tmp_path):
    def load(*overrides):
        names = ("batch_size", "accumulation", "precision", "data", "held_out", "every", "workers")
        values = {name: TINY[name] for name in names} | {
            "stage": "codes",
            "steps": 4,
            "start": str(setok),
            "code_dim": 4,
            "code_width": 16,
            "fit": {"images": 12, "steps": 30, "batch_size": 16},
            "optimizer": {"lr": 1.0e-3, "visual_lr": 1.0e-4, "warmup": 1},
            "ema": 0.0,
        }
        path = tmp_path / "codes.yaml"
        path.write_text(yaml.safe_dump(values))
        return load_settings(path, overrides)

    return load


def test_a_run_trains_codes_and_detokenizer_and_keeps_the_tokens(settings, setok, tmp_path):
    out = tmp_path / "out"
    metrics = Trainer(settings("every.pictures=4"), out).train()
    assert set(metrics) >= {"psnr", "code_psnr", "token_error", "active_channels", "tokens"}
    assert 0 <= metrics["active_channels"] <= 4
    assert json.loads((out / "metrics.json").read_text())["code_psnr"] == metrics["code_psnr"]
    lines = losses_of(out)
    assert len(lines) == 4 and {"pixel", "token", "kl"} <= set(lines[0])
    with Image.open(out / "pictures" / "step-00000004.png") as sheet:
        assert sheet.width > sheet.height > 0
    before, after = SetokModel.from_pretrained(setok), SetokModel.from_pretrained(out / "model")
    assert after.config.code_dim == 4 and after.codes.fitted
    images = [picture(seed) for seed in range(3)]
    with torch.no_grad():
        visual = after.tokenize(images)
        assert torch.equal(before.tokenize(images).tokens, visual.tokens)
        recoded = after.recode(visual)
    assert not recoded.tokens[~visual.occupied].any()
    assert not torch.equal(recoded.tokens, visual.tokens)
    assert torch.equal(recoded.occupied, visual.occupied)
    changed = {
        name.split(".")[0]
        for name, value in after.state_dict().items()
        if name in before.state_dict() and not torch.equal(value, before.state_dict()[name])
    }
    assert changed == {"detokenizer"}
    SetokProcessor.from_pretrained(out / "model")


def test_losses_of_weight_0_are_not_computed(settings):
    torch.manual_seed(0)
    stage = build_stage(settings("losses.token=0", "losses.kl=0"))
    dataset = settings().data.build()
    stage.prepare([dataset[i] for i in range(12)])
    batch = stage.collator()([dataset[i] for i in range(3)])
    found = stage(batch).losses
    assert set(found) == {"pixel"}
    sum(found.values()).backward()
    trained = {name.split(".")[1] for name, p in stage.named_parameters() if p.grad is not None}
    assert trained == {"codes", "detokenizer"}
    rates = {g["lr"] for g in stage.parameter_groups(settings().optimizer)}
    assert rates == {1e-3, 1e-4}


def test_bad_settings(settings, setok, tmp_path):
    for overrides, message in (
        (["start=null"], "start: expected the folder of a model of stage 1, got None"),
        (["parallel=fsdp"], "parallel: expected ddp, got fsdp"),
        (["fit.steps=0"], r"fit\.steps: expected at least 1, got 0"),
        (["fit.lr=-1"], r"fit\.lr: expected at least 0, got -1"),
        (["block_weights=[0, 0, 0, 0]"], "block_weights: expected four weights of at least 0"),
        (["losses.kl=-1"], r"losses\.kl: expected at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            settings(*overrides)
    with pytest.raises(ValueError, match="stage: expected codes, got 1"):
        CodesSettings(stage=1, start="x")
    with pytest.raises(ValueError, match="start: expected a model of stage 1 without codes, got"):
        build_stage(settings(f"start={tmp_path}"))
    with pytest.raises(ValueError, match="code_dim: expected a whole number of at least 1, got 0"):
        build_stage(settings("code_dim=0"))
    Trainer(settings("steps=1"), tmp_path / "run").train()
    with pytest.raises(ValueError, match="it has codes of 4 channels already"):
        build_stage(settings(f"start={tmp_path / 'run' / 'model'}"))
