import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny_stage1 import TINY, losses_of, tiny_file, wait_for
from setok_cli.main import main
from setokim import SetokModel, SetokProcessor
from setokim.data import ShapesWorld
from setokim.training.settings import load_settings
from setokim.training.stage1.collator import Stage1Collator
from setokim.training.stage1.evaluation import evaluate
from setokim.training.stage1.stage import Stage1
from setokim.utils.folder_lock import locked

FIGURES = ["psnr", "tokens", "sharpness", "fg_ari", "best_overlap_iou", "token_object_correlation"]
FIGURES += ["recall_at_1", "recall_at_1_chance"]


@pytest.fixture
def train(tmp_path):
    """Run `setok train` and return the exit code."""

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
    assert f"Model, images and metrics are in {out}\n" in printed.out
    assert "process 0, data: all 16 samples tried could be read\n" in printed.out
    assert "contrastive" in printed.err

    # The saved model is the evaluated one.
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
    again = evaluate(
        stage, Stage1Collator(stage.setok, stage.text.tokenize), held_out, TINY["batch_size"]
    )
    assert {name: metrics[name] for name in FIGURES} == pytest.approx(again)


def test_resume(tmp_path, train, capsys):
    assert train("every.checkpoint=2") == 0
    before = (tmp_path / "out" / "losses.jsonl").read_text()
    assert train("every.checkpoint=2") == 2
    assert "setok train: out: expected a folder without checkpoints" in capsys.readouterr().err
    assert train("--resume", "ema=0.5") == 2
    assert "got other values of ema" in capsys.readouterr().err
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
            "kind: expected one of shapes-world, shapes-tasks, tokens, ",
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
    assert 'pip install "setok-kernels[cli,model,train]"' in capsys.readouterr().err


def test_a_missing_package_of_a_stage_is_named(train, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "setokim.training.stage1.stage", None)
    assert train() == 2
    assert "setok train: needs setokim: pip install" in capsys.readouterr().err


def one_line(error):
    """Return the output of the command, all of it on stderr."""
    (line,) = [line for line in error.splitlines() if line.startswith("setok train:")]
    assert error.rstrip().endswith(line) and "Traceback" not in error
    return line


def test_metrics_as_json(tmp_path, train, capsys):
    assert train("every.checkpoint=0", "--json") == 0
    printed = capsys.readouterr()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert json.loads(printed.out) == {"metrics": metrics, "out": str(tmp_path / "out")}
    assert "process 0, data: " in printed.err


def test_resume_without_a_checkpoint(tmp_path, train, capsys):
    assert train("--resume") == 2
    expected = "setok train: out: expected a folder with a checkpoint to resume from, got "
    assert one_line(capsys.readouterr().err) == f"{expected}{tmp_path / 'out'}"
    assert not (tmp_path / "out").exists()


def test_damaged_files_are_named_in_one_line_and_nothing_is_lost(tmp_path, train, capsys):
    out = tmp_path / "out"
    assert train("keep=1") == 0
    checkpoint = out / "checkpoint-00000004"
    damages = {
        out / "losses.jsonl": b"\0\xff\n",
        checkpoint / "state.json": b"{}",
        checkpoint / "tensors.safetensors": b"x" * 99,
        checkpoint / "SHA256SUMS": b"\xff",
    }
    for path, content in damages.items():
        before = path.read_bytes()
        path.write_bytes(content)
        files = {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
        capsys.readouterr()
        assert train("keep=1", "--resume") == 2
        assert path.name in one_line(capsys.readouterr().err)
        assert {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()} == files
        path.write_bytes(before)
    assert train("keep=1", "--resume") == 0


def test_a_folder_in_use_is_named_with_its_holder(tmp_path, train, capsys):
    with locked(tmp_path / "out"):
        assert train() == 2
    line = one_line(capsys.readouterr().err)
    assert line.startswith("setok train: out: expected a folder that no process writes into, got ")
    assert f"held by process {os.getpid()} on " in line
    assert not (tmp_path / "out" / "losses.jsonl").exists()


def test_too_many_broken_samples_and_a_run_that_diverges_end_in_one_line(tmp_path, train, capsys):
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        (tmp_path / "pictures" / f"{i}.png").write_text("no image")
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "4.png")
    data = f"data={{kind: folder, path: {tmp_path / 'pictures'}}}"
    assert train(data) == 2
    line = one_line(capsys.readouterr().err)
    assert "of the samples are broken" in line and ".png: not an image" in line
    shutil.rmtree(tmp_path / "out")
    assert train("optimizer.lr=1e25") == 2
    assert ": a loss is not finite: {" in one_line(capsys.readouterr().err)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, train, capsys, monkeypatch):
    (tmp_path / "out").write_text("a file")
    assert train() == 2
    assert f"'{tmp_path / 'out'}'" in one_line(capsys.readouterr().err)
    (tmp_path / "out").unlink()

    def refuse(path, *arguments, **named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert train() == 2
    line = one_line(capsys.readouterr().err)
    assert "Read-only file system" in line and f"'{tmp_path / 'out'}'" in line


LIMITED = """
import resource, sys
from setok_cli.main import main
# As a disk that is full after so many bytes of a file.
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "name"), [(300, "losses.jsonl"), (20_000, "tensors.safetensors")]
)
def test_a_full_disk_ends_the_run_in_one_line(tmp_path, limit, name):
    """A line of losses has some 170 bytes, a checkpoint more than the limit."""
    config, out = tiny_file(tmp_path), tmp_path / "out"
    arguments = ["train", "--config", str(config), "--out", str(out), "losses.adversarial=0"]
    command = [sys.executable, "-c", LIMITED, str(limit), *arguments]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    line = one_line(done.stderr)
    assert name in line and "File too large" in line
    assert not list(out.glob(".unfinished*")) and not list(out.glob("checkpoint-*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_and_has_its_exit_code(tmp_path, name):
    """At any time after the first step; the run has far more steps."""
    number, out = getattr(signal, name), tmp_path / "out"
    command = [sys.executable, "-m", "setok_cli.main", "train", "--out", str(out)]
    command += ["--config", str(tiny_file(tmp_path)), "steps=1000000"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    with (tmp_path / "stderr.txt").open("w") as stderr:
        process = subprocess.Popen(command, env=environment, stderr=stderr)
    wait_for(out / "losses.jsonl", process)
    while not (out / "losses.jsonl").stat().st_size:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() == 128 + number
    said = (tmp_path / "stderr.txt").read_text()
    step = losses_of(out)[-1]["step"]
    assert f"{name}: step {step} is saved; --resume continues from it\n" in said
    assert "Traceback" not in said
    assert [p.name for p in out.glob("checkpoint-*")] == [f"checkpoint-{step:08d}"]
