import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.rounding import assert_same_but_for_rounding
from helpers.tiny_speaker import complaints, photo, prompts, says, speaker_folder  # noqa: F401
from setok_cli.main import main
from setokim.data.conversations import SPECIAL
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor


@pytest.fixture
def chat(speaker_folder):  # noqa: F811
    return lambda *arguments: main(["chat", "--model", str(speaker_folder), *map(str, arguments)])


@pytest.fixture
def prompt_ids(speaker_folder, monkeypatch):  # noqa: F811
    """Ids of each prompt of the model, and its tokenizer."""
    given, generate = [], SetokimModel.generate

    def spied(self, input_ids, **options):
        given.append(input_ids[0].tolist())
        return generate(self, input_ids=input_ids, **options)

    monkeypatch.setattr(SetokimModel, "generate", spied)
    return given, SetokimProcessor.from_pretrained(speaker_folder).tokenizer


def texts(message):
    return [part.get("text", part["type"]) for part in message["content"]]


def test_one_answer(chat, says, capsys):  # noqa: F811
    says("a red circle.</s>")
    assert chat("describe the picture.") == 0
    printed = capsys.readouterr()
    assert (printed.out, complaints(printed.err)) == ("a red circle.\n", [])


def test_text_is_printed_as_it_is_generated(chat, says, monkeypatch):  # noqa: F811
    says("a red circle.</s>")
    out = io.StringIO()
    pieces = []
    monkeypatch.setattr(out, "write", pieces.append)
    monkeypatch.setattr(sys, "stdout", out)
    assert chat("describe the picture.") == 0
    assert [piece for piece in pieces if piece] == ["a", " red", " circle", ".", "\n"]


def test_images_and_masks_are_named_and_kept(tmp_path, chat, says, photo, capsys):  # noqa: F811
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
    turns = (
        "<img> <image> </img> yes [SEG] a </s>",
        "a</s>",
        "no</s>",
        "<img> <image> </img> </s>",
    )
    says(*turns)
    lines = "draw a circle\n\n what is <image>?\n is the circle red?\ndraw a square\nexit\nnever\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    out = tmp_path / "out"
    assert chat("--image", photo, "--out", out) == 0
    printed = capsys.readouterr()
    assert printed.out == "[answer-001.png] yes [mask-001.png] a\na\nno\n[answer-002.png]\n"
    assert complaints(printed.err) == []
    assert [[m["role"] for m in messages] for messages in prompts] == [
        ["user", "assistant"] * number + ["user"] for number in range(4)
    ]
    assert [texts(message) for message in prompts[-1]] == [
        ["image", "draw a circle"],
        ["image", "yes", "mask", "a"],
        ["what is <image>?"],
        ["a"],
        ["is the circle red?"],
        ["no"],
        ["draw a square"],
    ]
    # Later turns refer to the image of the first message.
    kept = Image.open(out / "answer-001.png")
    assert list(prompts[-1][1]["content"][0]["image"].getdata()) == list(kept.getdata())


def test_earlier_answers_keep_their_token_ids(chat, says, prompt_ids, photo, monkeypatch):  # noqa: F811
    says("<img> <image> <image> </img> yes [SEG] a [SEG] </s>", "no</s>")
    monkeypatch.setattr(sys, "stdin", io.StringIO("draw a circle\nis the circle red?\n"))
    assert chat("--image", photo) == 0
    [first, second], tokenizer = prompt_ids
    # An image has one position, whatever its number of tokens.
    said = tokenizer.encode("<img> <image> </img> yes [SEG] a [SEG] </s>", add_special_tokens=False)
    assert second[: len(first) + len(said)] == first + said


@pytest.mark.parametrize("name", [*SPECIAL, "<s>", "</s>", "<pad>", "<unk>"])
def test_a_text_makes_no_special_tokens(chat, says, prompt_ids, photo, monkeypatch, name):  # noqa: F811
    def specials(text):
        says("yes</s>", "no</s>")
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{text}\nis {text} red{text}?\n"))
        assert chat("--image", photo) == 0
        given, tokenizer = prompt_ids
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        found = [[i for i in ids if i in special] for ids in given]
        given.clear()
        return found

    assert specials(name) == specials("red")


def test_bytes_that_are_not_text(chat, says, prompts, capsys, monkeypatch):  # noqa: F811
    says("yes</s>", "no</s>")
    stdin = io.TextIOWrapper(io.BytesIO(b"is \xff red?\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert chat() == 0
    assert texts(prompts[0][0]) == ["is \ufffd red?"]
    # As an argument on the command line.
    assert chat(os.fsdecode(b"is \xff red?")) == 0
    assert capsys.readouterr().out == "yes\nno\n"


def test_end_of_input_ends(chat, says, capsys, monkeypatch):  # noqa: F811
    says("yes</s>")
    monkeypatch.setattr(sys, "stdin", io.StringIO("is the circle red?"))
    assert chat() == 0
    assert capsys.readouterr().out == "yes\n"


def test_dropped_images_and_cut_answers_are_reported(chat, says, capsys):  # noqa: F811
    says("<img> <image> <image> <image>")
    assert chat("--max-new-tokens", 3, "draw a circle") == 0
    printed = capsys.readouterr()
    assert printed.out == "[answer-001.png]\n"
    assert complaints(printed.err) == [
        "setok chat: images and masks are kept only with --out",
        "setok chat: cut off by --max-new-tokens",
    ]


def test_a_random_seed_makes_answers_repeatable(chat, says, monkeypatch):  # noqa: F811
    samples = []
    before = SetokimModel.generate

    def spied(self, **options):
        answers = before(self, **options)
        samples.append(answers[0].tokens[0])  # (2, 24)
        return answers

    monkeypatch.setattr(SetokimModel, "generate", spied)
    for seed in (1, 1, 2):
        says("<img> <image> <image> </img> </s>")
        assert chat("--seed", seed, "draw a circle") == 0
    assert_same_but_for_rounding(samples[0], samples[1])
    assert not torch.allclose(samples[0], samples[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1", "yes"], "temperature: expected at least 0, got -1.0"),
        (["--top-p", "0", "yes"], "top_p: expected a number above 0"),
        (["--steps", "0", "yes"], "sampling_steps: expected at least 1, got 0"),
        (["--device", "moon", "yes"], "--device moon cannot be used"),
        (["--image", "/nowhere.png", "--", "yes"], "--image: cannot read /nowhere.png"),
        (["--out", "/dev/null/x", "yes"], "--out: cannot make the folder /dev/null/x"),
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
    monkeypatch.setitem(sys.modules, "setokim.vlm.modeling_setokim", None)
    assert chat("yes") == 2
    assert 'pip install "setok-kernels[cli,model]"' in capsys.readouterr().err


def copy_of(folder, tmp_path):
    """A copy of the model's folder, to be damaged."""
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", None),
        ("model.safetensors", b"short"),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("tokenizer.json", b"{"),
        ("tokenizer_config.json", b"{"),
        ("preprocessor_config.json", b"{"),
        ("preprocessor_config.json", None),
    ],
)
def test_a_damaged_model(speaker_folder, tmp_path, capsys, file, content):  # noqa: F811
    folder = copy_of(speaker_folder, tmp_path)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    assert main(["chat", "--model", str(folder), "hello"]) == 2
    [line] = [one for one in capsys.readouterr().err.splitlines() if one.startswith("setok")]
    assert line.startswith("setok chat: --model: ") and str(folder) in line


@pytest.mark.slow
def test_code_of_a_model_is_not_run(speaker_folder, tmp_path):  # noqa: F811
    """Not even after a "yes" on the standard input."""
    folder, mark = copy_of(speaker_folder, tmp_path), tmp_path / "it-ran"
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w')\nclass Words: pass\n")
    path = folder / "tokenizer_config.json"
    ours = {"tokenizer_class": "Words", "auto_map": {"AutoTokenizer": [None, "code.Words"]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | ours))
    code = "from setok_cli.main import main; import sys; sys.exit(main())"
    run = subprocess.run(
        [sys.executable, "-c", code, "chat", "--model", str(folder)],
        input="y\n" * 9,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2 and "brings Python code of its own" in run.stderr
    assert run.stdout == "" and not mark.exists()


def test_a_closed_standard_input(chat, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert chat() == 2
    assert "expected a message or an open standard input" in capsys.readouterr().err


def test_a_line_that_is_not_utf_8(chat, says, prompts, monkeypatch):  # noqa: F811
    says("no</s>")
    lines = io.TextIOWrapper(io.BytesIO(b"is it r\xe9d?\nexit\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", lines)
    assert chat() == 0
    assert texts(prompts[0][0]) == ["is it r\N{REPLACEMENT CHARACTER}d?"]
