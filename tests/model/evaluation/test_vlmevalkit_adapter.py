import importlib

import pytest

from helpers.fake_vlmevalkit import ADAPTER, BaseModel, fake_vlmevalkit
from helpers.tiny_setokim import build, picture
from setokim.data.conversations import message
from setokim.data.image_processing import load_image
from setokim.evaluation.prompting import generate_answers
from setokim.vlm.generation_config import SetokimGenerationConfig


@pytest.fixture
def adapter(monkeypatch):
    with fake_vlmevalkit(monkeypatch):
        yield importlib.import_module(ADAPTER)


@pytest.fixture(scope="module")
def built():
    return build()


@pytest.fixture
def paths(tmp_path):
    found = [tmp_path / f"{number}.png" for number in range(2)]
    for number, path in enumerate(found):
        picture(number).save(path)
    return found


@pytest.fixture
def model(adapter, built, tmp_path):
    for part in built:
        part.save_pretrained(tmp_path / "model")
    return adapter.Setokim(str(tmp_path / "model"), max_new_tokens=4, device="cpu")


def expected(built, *parts):
    config = SetokimGenerationConfig(max_new_tokens=4)
    (found,) = generate_answers(*built, [[message("user", *parts)]], config)
    return built[1].decode(found.ids).strip()


def test_answers_are_those_of_the_model(model, built, paths):
    assert isinstance(model, BaseModel) and model.INTERLEAVE
    shown = [{"type": "image", "value": str(path)} for path in paths]
    text, second = ({"type": "text", "value": one} for one in ("where is everything?", "and?"))
    images = [load_image(path) for path in paths]
    # One image; two that alternate with texts; a text alone, which VLMEvalKit allows too.
    one = model.generate([shown[0], text], dataset="MME")
    assert one == expected(built, images[0], text["value"])
    alternating = model.generate([shown[0], text, shown[1], second])
    assert alternating == expected(built, images[0], text["value"], images[1], "and?")
    assert model.generate("is?") == expected(built, "is?")
    assert len({one, alternating}) == 2


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([{"type": "video", "value": "a.mp4"}], "message: expected image or text, got 'video'"),
        ([], "message: expected at least one part, got none"),
        ([{"type": "image", "value": "absent.png"}], "absent.png"),
    ],
)
def test_other_messages(model, parts, reason):
    with pytest.raises(ValueError, match=reason):
        model.generate_inner(parts)


def test_a_folder_without_model(adapter, tmp_path):
    with pytest.raises((OSError, ValueError), match="absent"):
        adapter.Setokim(str(tmp_path / "absent"), device="cpu")
    with pytest.raises((TypeError, ValueError), match="max_new_tokens"):
        adapter.Setokim(str(tmp_path), max_new_tokens=0, device="cpu")
