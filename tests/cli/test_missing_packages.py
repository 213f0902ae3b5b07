"""Commands with only some extras installed: their requirements and error messages."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from helpers.extras import modules_behind, modules_without
from helpers.tiny_speaker import photo, speaker_folder, words_as_ids  # noqa: F401
from helpers.tiny_stage1 import tiny_file

TESTS = Path(__file__).parents[1]


def setok(*arguments, extras=(), missing=(), says=None, model=None):
    """Run a command in a Python with the packages of these extras, without the missing ones.

    Args:
        says: what a model says whose folder is `model`.
    """
    blocked = [*modules_without(*extras), *missing]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
    if says is not None:
        code += (
            "from helpers.scripted import logits_that_say\n"
            "from setokim.vlm.modeling_setokim import SetokimModel\n"
            f"SetokimModel.logits = logits_that_say(*{words_as_ids(model, says)})\n"
        )
        arguments = (arguments[0], "--model", model, *arguments[1:])
    code += "from setok_cli.main import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(TESTS)!r})\n{code}"]
        + [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def one_line(run, command):
    """Return the message of a command that cannot run."""
    lines = [line for line in run.stderr.splitlines() if line.startswith(f"setok {command}: ")]
    assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
    [line] = lines
    return line.removeprefix(f"setok {command}: ")


def test_cluster(photo, tmp_path):  # noqa: F811
    run = setok("cluster", photo, "--out", tmp_path, "--grid", "4x5", extras=["cli"])
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "photo.clusters.png").exists()


def test_explore():
    blocked = sorted(set(modules_without("explore")) - modules_behind("explore"))
    assert "matplotlib" in blocked and "diffusers" in blocked
    code = f"""import sys
sys.modules.update(dict.fromkeys({blocked!r}))
from setok_cli.main import build_parser
from setokim.cli.explore import make_features
from setokim.explorer.server import build_page
features = make_features(build_parser().parse_args(["explore", "--model", "small-world"]))
build_page(features)
print(features.clusters("astronaut", features.presets["model"]).tokens, "tokens")"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.endswith("tokens\n"), run.stderr


def test_compress(photo, tmp_path):  # noqa: F811
    run = setok("compress", tmp_path, photo, "--question", "what is it?", extras=["cli"])
    said = 'needs transformers: pip install "setok-kernels[cli,model]"'
    assert one_line(run, "compress") == said


@pytest.mark.slow
def test_a_model_that_answers_and_segments(photo, speaker_folder, tmp_path):  # noqa: F811
    needed = {"extras": ["cli", "model"], "model": speaker_folder}
    run = setok("chat", "--image", photo, "--", "what is it?", says="red [SEG] </s>", **needed)
    assert run.returncode == 0 and "red [mask-001.png]" in run.stdout, run.stderr
    out = tmp_path / "mask.png"
    arguments = ("segment", "--image", photo, "--out", out, "segment the circle.")
    run = setok(*arguments, says="[SEG] </s>", **needed)
    assert run.returncode == 0 and Image.open(out).size == (50, 30), run.stderr


@pytest.mark.slow
def test_a_model_that_generates(speaker_folder, tmp_path):  # noqa: F811
    needed = {"model": speaker_folder, "says": "<img> <image> </img> </s>"}
    arguments = ("generate", "--out", tmp_path / "out.png", "draw a red circle.")
    run = setok(*arguments, extras=["cli", "model"], **needed)
    assert one_line(run, "generate") == 'needs diffusers: pip install "setok-kernels[generate]"'
    run = setok("chat", "draw a red circle.", extras=["cli", "model"], **needed)
    assert one_line(run, "chat") == 'needs diffusers: pip install "setok-kernels[generate]"'
    run = setok(*arguments, extras=["cli", "model", "generate"], **needed)
    assert run.returncode == 0 and (tmp_path / "out.png").exists(), run.stderr


@pytest.mark.slow
def test_train(tmp_path):
    arguments = ("train", "--config", tiny_file(tmp_path), "--out", tmp_path / "out")
    run = setok(*arguments, extras=["cli", "model"])
    said = 'needs accelerate: pip install "setok-kernels[cli,model,train]"'
    assert one_line(run, "train") == said
    extras = ["cli", "model", "train"]
    run = setok(*arguments, "every.log=1", extras=extras, missing=["tensorboard"])
    assert one_line(run, "train") == 'needs tensorboard: pip install "setok-kernels[train]"'
    assert not (tmp_path / "out").exists()
    # Without a log, neither its package nor those of the other stages are needed.
    missing = ["tensorboard", "diffusers", "peft"]
    run = setok(*arguments, "every.log=0", "steps=2", extras=extras, missing=missing)
    assert run.returncode == 0 and (tmp_path / "out" / "metrics.json").exists(), run.stderr
    arguments = ("train", "--config", tiny_file(tmp_path), "--out", tmp_path / "logged")
    run = setok(*arguments, "every.log=1", "steps=2", extras=extras)
    assert run.returncode == 0, run.stderr
    assert any((tmp_path / "logged" / "logs").rglob("events.out.tfevents.*"))


@pytest.mark.slow
def test_bench(tmp_path):
    arguments = ("bench", "--device", "cpu", "--only", "cluster_tokens", "--shapes", "1x20x4")
    run = setok(*arguments, "--seconds", "0.1", "--out", tmp_path / "r.json", extras=["bench"])
    assert run.returncode == 0, run.stderr
    run = setok(*arguments, extras=["cli"])
    assert one_line(run, "bench") == 'needs jsonschema: pip install "setok-kernels[bench]"'
