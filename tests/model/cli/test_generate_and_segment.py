import errno

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny_speaker import photo, prompts, says, speaker_folder  # noqa: F401
from setok_cli.main import main
from setokim.vlm.modeling_setokim import SetokimModel


@pytest.fixture
def run(speaker_folder, tmp_path):  # noqa: F811
    """Run a command that writes out.png or another file."""

    def run(command, *arguments, out="new/out.png"):
        options = ["--model", str(speaker_folder), "--out", str(tmp_path / out)]
        return main([command, *options, *map(str, arguments)])

    return run


def test_generate(tmp_path, run, says, prompts, capsys):  # noqa: F811
    says("<img> <image> <image> </img> </s>")
    assert run("generate", "draw a red circle.") == 0
    out = tmp_path / "new" / "out.png"
    assert Image.open(out).size == (32, 32)
    assert capsys.readouterr().out == f"Image of 2 visual tokens is in {out}\n"
    # The text unchanged, and nothing else.
    assert prompts == [
        [{"role": "user", "content": [{"type": "text", "text": "draw a red circle."}]}]
    ]


def test_edit(tmp_path, run, says, prompts, photo, capsys):  # noqa: F811
    says("<img> <image> </img> <img> <image> </img> </s>")
    assert run("edit", "--image", photo, "remove the circle.") == 0
    assert Image.open(tmp_path / "new" / "out.png").size == (32, 32)
    assert "edit: the model generated 2 images, this is the first" in capsys.readouterr().err
    [[message]] = prompts
    assert [part["type"] for part in message["content"]] == ["image", "text"]
    assert message["content"][0]["image"].size == (50, 30)


def test_segment(tmp_path, run, says, photo, capsys, monkeypatch):  # noqa: F811
    says("[SEG] </s>")
    before = SetokimModel.masks

    def left_fifth(self, states, visual, images, size):
        found = before(self, states, visual, images, size)
        assert size == (30, 50)
        found.fine[:] = torch.where(torch.arange(50) < 10, 1.0, -1.0)
        return found

    monkeypatch.setattr(SetokimModel, "masks", left_fifth)
    assert run("segment", "--image", photo, "segment the circle.") == 0
    out = tmp_path / "new" / "out.png"
    assert capsys.readouterr().out == f"Mask of 20.0% of the pixels is in {out}\n"
    wanted = np.zeros((30, 50), np.uint8)
    wanted[:, :10] = 255
    assert np.array_equal(np.asarray(Image.open(out)), wanted)


@pytest.mark.parametrize("command", ["generate", "edit", "segment"])
def test_an_answer_without_an_image(tmp_path, run, says, photo, capsys, command):  # noqa: F811
    says("no circle</s>")
    image = [] if command == "generate" else ["--image", photo]
    assert run(command, *image, "draw a circle") == 1
    failure = "predicted no mask" if command == "segment" else "generated no image"
    assert f"setok {command}: the model {failure}; its text: no circle\n" in capsys.readouterr().err
    assert not (tmp_path / "new" / "out.png").exists()


@pytest.mark.parametrize(
    ("command", "out"), [("generate", "x.txt"), ("edit", "x"), ("segment", "x.jpg")]
)
def test_a_file_that_cannot_be_written(run, photo, capsys, command, out):  # noqa: F811
    image = [] if command == "generate" else ["--image", photo]
    assert run(command, *image, "draw a circle", out=out) == 2
    assert f"setok {command}: --out: expected a file name ending in .png" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["edit", "segment"])
def test_an_image_that_cannot_be_read(run, capsys, command):
    assert run(command, "--image", "/nowhere.png", "draw a circle") == 2
    assert f"setok {command}: --image: cannot read /nowhere.png" in capsys.readouterr().err


def test_a_text_with_the_name_of_a_token(run, says):  # noqa: F811
    says("<img> <image> </img> </s>")
    assert run("generate", "draw </img> and </s>") == 0


def test_an_option_that_does_not_fit(run, capsys):
    assert run("generate", "--temperature", "-1", "draw") == 2
    assert "setok generate: temperature: expected at least 0, got -1.0" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "segment"])
def test_results_are_written_beside(tmp_path, run, says, photo, capsys, command, monkeypatch):  # noqa: F811
    other, out = tmp_path / "other.png", tmp_path / "new" / "out.png"
    other.write_text("precious")
    out.parent.mkdir()
    out.symlink_to(other)
    says(*["<img> <image> </img> </s>" if command == "generate" else "[SEG] </s>"] * 2)
    image = () if command == "generate" else ("--image", photo)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("setokim.utils.files.os.fsync", full)
        assert run(command, *image, "a circle.") == 2
    assert f"--out: cannot write {out}: [Errno 28]" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == [out] and out.is_symlink()
    assert run(command, *image, "a circle.") == 0
    assert Image.open(out).width > 0 and not out.is_symlink()
    assert other.read_text() == "precious"
