import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from rounding import assert_same_but_for_rounding
from tiny_speaker import complaints, photo, prompts, says, speaker_folder  # noqa: F401

from setok_kernels.cli.main import main
from setokim.modeling_setokim import SetokimModel


@pytest.fixture
def chat(speaker_folder):  # noqa: F811
    return lambda *arguments: main(["chat", "--model", str(speaker_folder), *map(str, arguments)])


def texts(message):
    return [part.get("text", part["type"]) for part in message["content"]]


def test_one_answer(chat, says, capsys):  # noqa: F811
    says("a red circle.</s>")
    assert chat("describe the picture.") == 0
    printed = capsys.readouterr()
    assert (printed.out, complaints(printed.err)) == ("a red circle.\n", [])


def test_words_come_as_they_are_said(chat, says, monkeypatch):  # noqa: F811
    says("a red circle.</s>")
    out = io.StringIO()
    pieces = []
    monkeypatch.setattr(out, "write", pieces.append)
    monkeypatch.setattr(sys, "stdout", out)
    assert chat("describe the picture.") == 0
    assert [piece for piece in pieces if piece] == ["a", " red", " circle", ".", "\n"]


def test_pictures_and_masks_are_named_and_kept(tmp_path, chat, says, photo, capsys):  # noqa: F811
    says("<img> <image> <image> </img> yes [SEG] a [SEG] </s>")
    out = tmp_path / "new" / "out"
    assert chat("--out", out, "--image", photo, "--", "draw a circle") == 0
    printed = capsys.readouterr()
    assert printed.out == "[answer-001.png] yes [mask-001.png] a [mask-002.png]\n"
    assert complaints(printed.err) == []
    names = ["answer-001.png", "mask-001.png", "mask-002.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert Image.open(out / "answer-001.png").size == (32, 32)
    mask = Image.open(out / "mask-001.png")
    assert (mask.size, mask.mode) == ((50, 30), "L")
    assert set(np.unique(mask)) <= {0, 255}


def test_a_conversation_is_kept(tmp_path, chat, says, prompts, photo, capsys, monkeypatch):  # noqa: F811
    says("<img> <image> </img> yes [SEG] </s>", "no</s>", "<img> <image> </img> </s>")
    lines = "draw a circle\n\n what is <image>?\n is the circle red?\ndraw a square\nexit\nnever\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    out = tmp_path / "out"
    # The line with the name of a token cannot be said, and is forgotten.
    assert chat("--image", photo, "--out", out) == 1
    printed = capsys.readouterr()
    assert printed.out == "[answer-001.png] yes [mask-001.png]\nno\n[answer-002.png]\n"
    assert complaints(printed.err) == [
        "setok chat: text: expected none of the tokens of pictures, got '<image>'"
    ]
    assert [[m["role"] for m in messages] for messages in prompts] == [
        ["user"],
        ["user", "assistant", "user"],
        ["user", "assistant", "user"],
        ["user", "assistant", "user", "assistant", "user"],
    ]
    assert [texts(message) for message in prompts[-1]] == [
        ["image", "draw a circle"],
        ["image", "yes[SEG]"],
        ["is the circle red?"],
        ["no"],
        ["draw a square"],
    ]
    # The picture that goes on being talked about is the one that was shown.
    kept = Image.open(out / "answer-001.png")
    assert list(prompts[-1][1]["content"][0]["image"].getdata()) == list(kept.getdata())


def test_end_of_input_ends(chat, says, capsys, monkeypatch):  # noqa: F811
    says("yes</s>")
    monkeypatch.setattr(sys, "stdin", io.StringIO("is the circle red?"))
    assert chat() == 0
    assert capsys.readouterr().out == "yes\n"


def test_what_is_not_kept_and_what_is_cut_off_is_said(chat, says, capsys):  # noqa: F811
    says("<img> <image> <image> <image>")
    assert chat("--max-new-tokens", 3, "draw a circle") == 0
    printed = capsys.readouterr()
    assert printed.out == "[answer-001.png]\n"
    assert complaints(printed.err) == [
        "setok chat: pictures and masks are kept only with --out",
        "setok chat: cut off by --max-new-tokens",
    ]


def test_a_seed_makes_it_repeatable(chat, says, monkeypatch):  # noqa: F811
    drawn = []
    before = SetokimModel.generate

    def spied(self, **options):
        answers = before(self, **options)
        drawn.append(answers[0].tokens[0])  # (2, 24)
        return answers

    monkeypatch.setattr(SetokimModel, "generate", spied)
    for seed in (1, 1, 2):
        says("<img> <image> <image> </img> </s>")
        assert chat("--seed", seed, "draw a circle") == 0
    assert_same_but_for_rounding(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1", "yes"], "temperature: expected at least 0, got -1.0"),
        (["--top-p", "0", "yes"], "top_p: expected a number above 0"),
        (["--steps", "0", "yes"], "sampling_steps: expected at least 1, got 0"),
        (["--device", "moon", "yes"], "--device moon cannot be used"),
        (["--image", "/nowhere.png", "--", "yes"], "--image: cannot read /nowhere.png"),
        (["--out", "/dev/null/x", "yes"], "--out: cannot make the folder /dev/null/x"),
        (["a <image>"], "text: expected none of the tokens of pictures, got '<image>'"),
    ],
)
def test_bad_arguments_are_named(chat, capsys, arguments, message):
    assert chat(*arguments) == 2
    assert f"setok chat: {message}" in capsys.readouterr().err


def test_a_folder_without_a_model_is_named(tmp_path, capsys):
    arguments = ["chat", "yes", "--model", str(tmp_path)]
    assert main(arguments) == 2
    assert f"--model: expected a folder with a SeTokim model, got {tmp_path}" in (
        capsys.readouterr().err
    )
    (tmp_path / "config.json").write_text('{"model_type": "setok"}')
    assert main(arguments) == 2
    assert f"expected a SeTokim model in {tmp_path}, got one of type 'setok'" in (
        capsys.readouterr().err
    )
    (tmp_path / "config.json").write_text('{"model_type": "setokim"}')
    assert main(arguments) == 2
    assert f"--model: cannot load {tmp_path}: " in capsys.readouterr().err


def test_a_missing_package_is_named(chat, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "setokim.modeling_setokim", None)
    assert chat("yes") == 2
    assert 'pip install "setok-kernels[cli,model]"' in capsys.readouterr().err
