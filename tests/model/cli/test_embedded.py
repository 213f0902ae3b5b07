"""The commands without `--model` and `--data`: a random model stands for the embedded one."""

import json
import shutil

import pytest
from PIL import Image

from helpers.tiny_embedded import embedded  # noqa: F401
from helpers.tiny_speaker import photo, prompts, says, speaker_folder  # noqa: F401
from setok_cli.main import main
from setokim.utils.pretrained import EMBEDDED
from setokim.vlm import generation_mixin

# Command, its arguments beside --model, and what the model says.
COMMANDS = {
    "chat": (["--image", "photo.png", "--", "what shape is the red object?"], "circle.</s>"),
    "generate": (["--out", "new.png", "draw a circle."], "<img> <image> </img> </s>"),
    "edit": (
        ["--image", "photo.png", "--out", "new.png", "make the red circle blue."],
        "<img> <image> </img> </s>",
    ),
    "segment": (["--image", "photo.png", "--out", "new.png", "segment the circle."], "[SEG] </s>"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_a_model(command, embedded, says, photo, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(photo.parent)
    used = []

    def spied(*arguments, **options):
        used.append(arguments[4].options)
        return generate(*arguments, **options)

    generate = generation_mixin.generate
    monkeypatch.setattr(generation_mixin, "generate", spied)
    words, said = COMMANDS[command]
    for model in ([], ["--model", "small-world"]):
        says(said)
        assert main([command, *model, *words]) == 0
    if command == "chat":
        assert capsys.readouterr().out == "circle.\n" * 2
    else:
        assert Image.open("new.png").width > 0
    # The model's own options of generation, and those of the command line before them.
    says(said)
    assert main([command, "--image-temperature", "0.5", "--max-new-tokens", "9", *words]) == 0
    found = [tuple(one[n] for n in ("image_temperature", "max_new_tokens")) for one in used]
    assert found == [(0.0, 6), (0.0, 6), (0.5, 9)]
    assert {one["sampling_steps"] for one in used} == {2}


def test_a_folder_of_the_user_comes_first(embedded, says, photo, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(photo.parent)
    shutil.copytree(embedded, "small-world")
    monkeypatch.setitem(EMBEDDED, "small-world", photo.parent / "gone")
    says("no</s>")
    assert main(["chat", "--model", "small-world", "is it?"]) == 0
    assert capsys.readouterr().out == "no\n"


def test_eval_takes_the_data_of_the_model(embedded, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "--benchmark", "shapes-world", "--out", "own"]) == 0
    held_out = embedded / "held_out.yaml"
    assert main(["eval", "--benchmark", "shapes-world", "--data", str(held_out), "--out", "g"]) == 0
    own, given = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("own", "g"))
    assert own == given and own["samples"] == 9
    run = json.loads((tmp_path / "own" / "run.json").read_text())
    assert (run["model"], run["data"]) == (str(embedded), str(held_out))
    assert (run["image_temperature"], run["max_new_tokens"]) == (0.0, 6)
    assert main(["eval", "--benchmark", "shapes-world", "--samples", "2", "--out", "two"]) == 0
    held_out.unlink()
    capsys.readouterr()
    lacks = f"the YAML file of a run, since the model has no {held_out}"
    for words, expected in {
        ("--benchmark", "shapes-world"): lacks,
        ("--benchmark", "gqa"): "the folder of the benchmark gqa",
        ("--all",): "a folder with one folder for each benchmark",
    }.items():
        assert main(["eval", *words, "--out", "none"]) == 2
        assert f"setok eval: --data: expected {expected}, got none" in capsys.readouterr().err
    assert main(["eval", "--benchmark", "nothing", "--out", "none"]) == 2
    assert "--benchmark: expected one of vqav2, " in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", ["chat", "generate", "eval"])
def test_an_installation_without_the_embedded_model(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EMBEDDED, "small-world", tmp_path / "gone")
    words = {
        "chat": ["is it?"],
        "generate": ["--out", "new.png", "draw a circle."],
        "eval": ["--benchmark", "shapes-world", "--out", "scores"],
    }[command]
    assert main([command, *words]) == 2
    said = capsys.readouterr().err
    assert f"setok {command}: --model: expected the folder of a model, since this " in said
    assert "lacks the embedded model small-world (" in said and list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        main([command, "--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    assert "(default: small-world, the embedded model, which comes with the package)" in help_text
