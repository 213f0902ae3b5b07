import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_stage1 import TINY, losses_of, tiny_file

from setok_kernels.cli.main import main
from setokim import SetokModel, SetokProcessor
from setokim.data import ShapesWorld
from setokim.training.evaluation import evaluate
from setokim.training.settings import load_settings
from setokim.training.stage1 import Stage1, Stage1Collator

FIGURES = ["psnr", "tokens", "sharpness", "fg_ari", "best_overlap_iou", "token_object_correlation"]
FIGURES += ["recall_at_1", "recall_at_1_chance"]


@pytest.fixture
def train(tmp_path):
    """Runs `setok train`; returns the exit code."""

    def run(*arguments):
        config = str(tiny_file(tmp_path))
        return main(["train", "--config", config, "--out", str(tmp_path / "out"), *arguments])

    return run


def test_from_settings_to_a_model(tmp_path, train, capsys, threads):
    threads(1)
    out = tmp_path / "out"
    every = ["every.log=1", "every.pictures=3", "every.evaluation=2", "every.checkpoint=2"]
    assert train("optimizer.lr=5e-4", "seed=3", "keep=1", *every) == 0

    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics) == [*FIGURES, "seconds", "steps", "seed", "commit"]
    assert (metrics["steps"], metrics["seed"]) == (4, 3)
    assert metrics["seconds"] > 0
    assert metrics["commit"] is None or len(metrics["commit"]) == 40
    assert [line["step"] for line in losses_of(out)] == [1, 2, 3, 4]
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-00000004"]
    assert any((out / "logs").rglob("events.out.tfevents.*"))
    evaluations = (out / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in evaluations] == [2, 4]
    pictures = sorted((out / "pictures").iterdir())
    assert [path.name for path in pictures] == ["step-00000003.png", "step-00000004.png"]
    assert all(Image.open(path).size == (6 * 132 + 4, 4 * 132 + 4) for path in pictures)

    printed = capsys.readouterr()
    assert f"{'psnr':<26} {metrics['psnr']:.4g}\n" in printed.out
    assert f"Model, pictures and metrics are in {out}\n" in printed.out
    assert "process 0, data: all 16 samples tried could be read\n" in printed.out
    assert "contrastive" in printed.err

    # What was written is what was evaluated.
    model = SetokModel.from_pretrained(out / "model")
    processor = SetokProcessor.from_pretrained(out / "model")
    held_out = [ShapesWorld(seed=1, size=32)[i] for i in range(6)]
    images = [sample.image for sample in held_out]
    with torch.no_grad():
        drawn = model(processor(images)["pixel_values"])[1]  # (6, 3, 32, 32)
    truth = np.stack([np.asarray(image) / 255 for image in images]).transpose(0, 3, 1, 2)
    errors = ((drawn.clamp(0, 1).double().numpy() - truth) ** 2).mean((1, 2, 3))
    assert metrics["psnr"] == pytest.approx((-10 * np.log10(errors)).mean(), rel=1e-5)
    stage = Stage1(load_settings(tmp_path / "tiny.yaml", ["seed=99"]))
    stage.setok = model
    stage.load_text_side(out / "model")
    again = evaluate(stage, Stage1Collator(stage), held_out, TINY["batch_size"])
    assert {name: metrics[name] for name in FIGURES} == pytest.approx(again)


def test_resume(tmp_path, train, capsys):
    assert train("every.checkpoint=2") == 0
    before = (tmp_path / "out" / "losses.jsonl").read_text()
    assert train("every.checkpoint=2") == 2
    assert "setok train: out: expected a folder without checkpoints" in capsys.readouterr().err
    assert train("--resume", "ema=0.5") == 2
    assert "got others of ema" in capsys.readouterr().err
    assert train("--resume", "every.checkpoint=1") == 0
    assert (tmp_path / "out" / "losses.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepz=3", "stepz: expected one of accumulation, "),
        ("losses.l3=1", "losses.l3: expected one of adversarial, "),
        ("steps=many", "steps: expected int, got 'many'"),
        ("steps", "override: expected key=value, got 'steps'"),
        ("steps=[", "steps: expected YAML, got '['"),
        ("model.widht=8", "model.widht: expected one of encoder, "),
        ("model.width=10", "width: expected a multiple of 4"),
        (
            "data.kind=movies",
            "kind: expected one of shapes-world, shapes-tasks, mixture, folder, shards, imagenet",
        ),
        ("data={kind: folder, path: /nowhere}", "root: expected a folder, got '/nowhere'"),
        (
            "data.options={colour: red}",
            "ShapesWorld.__init__() got an unexpected keyword argument 'colour'",
        ),
        ("optimizer.warmup=5", "optimizer.warmup: expected a number from 0 to steps=4, got 5"),
        ("held_out.samples=null", "held_out.samples: expected a number"),
    ],
)
def test_bad_settings_are_named(tmp_path, train, capsys, override, message):
    assert train(override) == 2
    assert f"setok train: {message}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_or_broken_file(tmp_path, capsys):
    arguments = ["train", "--out", str(tmp_path / "out"), "--config"]
    assert main([*arguments, str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
    (tmp_path / "broken.yaml").write_text("a: [")
    assert main([*arguments, str(tmp_path / "broken.yaml")]) == 2
    assert "broken.yaml: expected YAML" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(train, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "setokim.training.trainer", None)
    assert train() == 2
    assert 'pip install "setok-kernels[cli,model]"' in capsys.readouterr().err


def test_a_missing_package_of_a_stage_is_named(train, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "setokim.training.stage1", None)
    assert train() == 2
    assert "setok train: needs setokim.training.stage1: pip install" in capsys.readouterr().err
