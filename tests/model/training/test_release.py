"""Release of a model from a run: the folder's files, and what stops a release."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from helpers.tiny_embedded import GENERATION, HELD_OUT, stage3_file
from helpers.tiny_stage1 import change_settings
from setok_cli.main import main
from setokim import SetokimModel, SetokimProcessor, SetokModel
from setokim.evaluation.benchmarks import BENCHMARKS
from setokim.pretrained.release import main as release_main
from setokim.shapes_world.dataset import ShapesWorld
from setokim.training import latest_checkpoint
from setokim.training import release as module
from setokim.training.release import SAMPLES, measure, release
from setokim.training.settings import load_settings
from setokim.training.stages import build_stage
from setokim.training.trainer import Trainer
from setokim.utils.pretrained import EMBEDDED, load_whole
from setokim.vlm.generation_config import SetokimGenerationConfig

MANIFEST = Path(__file__).parents[3] / "MANIFEST.in"
OPTIONS = {"guidance": 1.0, "sampling_steps": 2, "image_temperature": 0.0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    Trainer(load_settings(stage3_file(folder)), folder / "run" / "stage3").train()
    return folder / "run"


@pytest.fixture(scope="module")
def released(finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("released") / "small_world"
    return out, release(finished, out)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run, to change."""
    return shutil.copytree(finished, tmp_path / "run")


def test_the_weights_are_those_of_the_run_in_bfloat16(finished, released, monkeypatch):
    out, figures = released
    weights = load_file(finished / "stage3" / "model" / "model.safetensors")
    stored = load_file(out / "model.safetensors")
    left_out = {name for name in weights if name.startswith("setok.to_concept.")}
    assert len(left_out) == 2 and stored.keys() == weights.keys() - left_out
    for name, tensor in stored.items():
        like = torch.bfloat16 if weights[name].is_floating_point() else weights[name].dtype
        assert torch.equal(tensor, weights[name].to(like)) and tensor.dtype == like, name
    assert figures["bytes"] == (out / "model.safetensors").stat().st_size
    monkeypatch.setitem(EMBEDDED, "small-world", out)
    for model in (SetokimModel.from_pretrained(), load_whole(SetokimModel, out)):
        assert model.dtype == torch.float32 and model.setok.to_concept is None
        assert model.generation_config == SetokimGenerationConfig(**OPTIONS)
        assert sum(p.numel() for p in model.parameters()) == figures["parameters"]
    assert SetokModel.from_pretrained().to_concept is None
    assert SetokimProcessor.from_pretrained().decode([1]) is not None


def test_the_files_are_those_of_the_package_data(released):
    patterns = re.findall(
        r"^recursive-include model/pretrained (.*)$", MANIFEST.read_text(), re.MULTILINE
    )[0].split()
    modes = {path.stat().st_mode for path in released[0].iterdir()}
    assert modes == {(released[0] / "config.json").stat().st_mode}
    for path in released[0].iterdir():
        assert any(path.match(pattern) for pattern in patterns), path.name


def test_the_run_keeps_its_options_of_generation(finished):
    model = SetokimModel.from_pretrained(finished / "stage3" / "model")
    assert model.generation_config == SetokimGenerationConfig(**OPTIONS)


def test_the_figures_are_repeated_by_measure_and_by_eval(finished, released, tmp_path):
    out, figures = released
    assert json.loads((out / "figures.json").read_text()) == figures
    assert figures["run"] == json.loads((finished / "stage3" / "metrics.json").read_text())
    first = dict(figures["first"])
    assert first.pop("samples") == SAMPLES == 100 and measure(out, SAMPLES) == first
    words = ["--model", str(out), "--samples", "100", "--out", str(tmp_path)]
    assert main(["eval", "--benchmark", "shapes-world", *words]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics.pop("broken") == 0 and metrics.items() <= figures["first"].items()
    # All held-out conversations are those of the run.
    assert len(BENCHMARKS["shapes-world"].open(out / "held_out.yaml")) == HELD_OUT["samples"]
    found = yaml.safe_load((out / "held_out.yaml").read_text())
    assert found["held_out"].items() >= HELD_OUT.items()
    assert found["generation"].items() >= GENERATION.items()


def test_training_goes_on_from_a_released_model(released, tmp_path):
    path = stage3_file(tmp_path)
    stage = build_stage(load_settings(path, [f"start={released[0]}"]))
    assert stage.model.setok.to_concept is None and stage.model.dtype == torch.float32
    assert not any(p.requires_grad for p in stage.model.setok.parameters())


def test_the_card(released):
    out, figures = released
    card = (out / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["license"] == "apache-2.0" and front["model-index"][0]["name"] == "small-world"
    metrics = front["model-index"][0]["results"][0]["metrics"]
    for metric in metrics:
        assert metric["value"] == round(figures["run"][metric["type"]], 4)
    assert len(metrics) == 10 and "$" not in text
    first = f"{figures['first']['vqa_accuracy']:.2f}"
    assert f"(`vqa_accuracy`) | {figures['run']['vqa_accuracy']:.2f} | {first} |" in text
    for part in ("## Data", "## Recipe", "## How to load it", "## Figures", "## Limits", "License"):
        assert part in text
    assert "took 2 steps of 4 conversations" in text
    assert figures["versions"]["torch"] in text


def test_the_scene_is_held_out(released):
    scene = Image.open(released[0] / "scene.png")
    world = ShapesWorld(1, 1000, 32, (1, 3))
    assert any(scene.tobytes() == world[i].image.tobytes() for i in range(9))


def test_a_folder_of_an_earlier_release_is_replaced(finished, released, tmp_path, capsys):
    out = tmp_path / "small_world"
    shutil.copytree(released[0], out)
    (out / "of-an-earlier-version.json").touch()
    assert release_main([str(finished), str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"A model of 0.13 MB is in {out}\n")
    assert {path.name for path in out.iterdir()} == {path.name for path in released[0].iterdir()}
    for path in out.iterdir():
        assert path.read_bytes() == (released[0] / path.name).read_bytes(), path.name
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_stopped_release_leaves_nothing_half_done(
    finished, released, tmp_path, monkeypatch, error
):
    def stops(*arguments):
        raise error

    monkeypatch.setattr(module, "model_card", stops)
    out = tmp_path / "small_world"
    with pytest.raises((KeyboardInterrupt, OSError)):
        release(finished, out)
    assert list(tmp_path.iterdir()) == []
    shutil.copytree(released[0], out)
    with pytest.raises((KeyboardInterrupt, OSError)):
        release(finished, out)
    assert list(tmp_path.iterdir()) == [out]
    assert (out / "README.md").read_bytes() == (released[0] / "README.md").read_bytes()


def test_weights_that_are_too_large(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "MAX_BYTES", 100_000)
    assert release_main([str(finished), str(tmp_path / "out")]) == 2
    expected = "run: expected weights of at most 0.1 MB in bfloat16, got 0.13"
    assert f"release: {expected}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def forget_metrics(run):
    (run / "stage3" / "metrics.json").unlink()


def end_too_early(run):
    path = run / "stage3" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": 1}))


def change(**settings):
    return lambda run: change_settings(latest_checkpoint(run / "stage3"), **settings)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda run: shutil.rmtree(run), "run: expected a run with a checkpoint, got none in "),
        (forget_metrics, "expected a finished run of 2 steps, got .*metrics of step None"),
        (end_too_early, "expected a finished run of 2 steps, got .*checkpoint-00000002 and .* 1;"),
        (change(steps=3), "expected a finished run of 3 steps, got .*--resume` finishes it"),
        (lambda run: shutil.rmtree(run / "stage3" / "model"), "expected a finished run of 2 steps"),
        (change(steps="x"), "run: expected a run of stage 3, got .*steps: expected int"),
        (change(imports=["own.py"]), r"imports: expected none of a model to release, got \('own"),
        (
            change(held_out={**HELD_OUT, "samples": 99}),
            "held_out: expected at least 100 samples of shapes-tasks, .* got 99 of shapes-tasks",
        ),
        (
            change(held_out={"kind": "folder", "path": "x", "samples": 100}),
            "held_out: expected at least 100 samples of shapes-tasks, .* got 100 of folder",
        ),
        (
            lambda run: (run / "stage3" / "model" / "model.safetensors").write_bytes(b""),
            "damaged file",
        ),
    ],
)
def test_a_run_that_does_not_fit(damage, expected, run, tmp_path, capsys):
    damage(run)
    assert release_main([str(run), str(tmp_path / "out")]) == 2
    assert re.search(f"release: .*{expected}", capsys.readouterr().err)
    assert {path.name for path in tmp_path.iterdir()} <= {"run"}


def test_a_folder_with_other_files_stays(finished, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for name, expected in {"mine": "a new folder, or one of an earl", "file": "a folder"}.items():
        assert release_main([str(finished), str(tmp_path / name)]) == 2
        assert f"release: out: expected {expected}" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.tex").exists()
