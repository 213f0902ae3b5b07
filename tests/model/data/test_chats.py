"""LLaVA's records in the forms that its own loader takes."""

import json

import pytest

from helpers.published import picture, save
from setokim.data import BrokenSampleError
from setokim.data.readers import READERS

HUMAN, GPT = {"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}
GREETING = {"from": "gpt", "value": "Hello."}


@pytest.fixture
def read(tmp_path):
    """Writes records into a data set, and returns it."""

    def write(*records):
        path = tmp_path / "root" / "chats.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(records))
        for number, name in enumerate(("a.png", "in/b.png")):
            save(path.parent / name, number)
        save(tmp_path / "secret.png")
        return READERS["allava"](path.parent, file="chats.json")

    return write


def contents(sample):
    return [[part.get("text", part.get("image")) for part in m["content"]] for m in sample.messages]


def test_a_beginning_by_the_assistant_is_dropped(read):
    dataset = read(
        {"id": "1", "conversations": [GREETING, HUMAN, GPT]},
        {"id": "2", "image": "a.png", "conversations": [GREETING, HUMAN, GPT]},
        {"id": "3", "conversations": [GREETING]},
        {"id": "4", "conversations": [GREETING, GREETING, HUMAN, GPT]},
        {"id": "5", "conversations": [GREETING, HUMAN]},
    )
    assert contents(dataset[0]) == [["What?"], ["A dog."]]
    assert contents(dataset[1])[0][1:] == ["What?"] and dataset[1].task == "vqa"
    for index, reason in ((2, "got 0 turns"), (3, "got 3 turns"), (4, "got 1 turns")):
        with pytest.raises(BrokenSampleError, match=reason):
            dataset[index]


def test_names_of_records(read):
    turns = {"conversations": [HUMAN, GPT]}
    dataset = read({"idx": 7, **turns}, {"id": "a", "idx": 7, **turns}, turns)
    assert [one.facts["id"] for one in dataset] == [7, "a", None]


@pytest.mark.parametrize("image", [None, "", []])
def test_records_without_an_image(read, image):
    (sample,) = read({"id": 1, "image": image, "conversations": [HUMAN, GPT]})
    assert sample.task == "text" and contents(sample) == [["What?"], ["A dog."]]


@pytest.mark.parametrize("name", ["a.png", "/a.png", "./a.png", "in/../a.png", "//in/..//a.png"])
def test_images_lie_below_the_folder(read, name):
    (sample,) = read({"id": 1, "image": name, "conversations": [HUMAN, GPT]})
    assert contents(sample)[0][0].tobytes() == picture(0).tobytes()


@pytest.mark.parametrize("name", ["../secret.png", "/../secret.png", "in/../../secret.png", ".."])
def test_no_image_lies_elsewhere(read, name):
    dataset = read({"id": 1, "image": name, "conversations": [HUMAN, GPT]})
    with pytest.raises(
        BrokenSampleError, match=r"chats\.json: \[0\]: expected a file in .*, got '"
    ):
        dataset[0]


def test_absolute_names_are_of_the_folder(read, tmp_path):
    name = str(tmp_path / "secret.png")
    dataset = read({"id": 1, "image": name, "conversations": [HUMAN, GPT]})
    with pytest.raises(BrokenSampleError, match=f"cannot read {tmp_path}/root{name}: No such file"):
        dataset[0]


def test_lists_of_images(read):
    two = {"from": "human", "value": "<image>\nand <image> differ?"}
    asked = {"from": "human", "value": "And <image>"}
    quoted = {"from": "gpt", "value": "It is <image>no picture."}
    dataset = read(
        {"id": 1, "image": ["in/b.png"], "conversations": [HUMAN, GPT]},
        {"id": 2, "image": ["a.png", "in/b.png"], "conversations": [two, GPT]},
        {
            "id": 3,
            "image": ["a.png", "in/b.png", "a.png"],
            "conversations": [two, quoted, asked, GPT],
        },
        {"id": 4, "image": ["a.png", "in/b.png"], "conversations": [asked, GPT]},
        {"id": 5, "image": ["a.png", 3], "conversations": [two, GPT]},
    )
    first, second = picture(0).tobytes(), picture(1).tobytes()

    def shown(index):
        return [
            [part if isinstance(part, str) else part.tobytes() for part in parts]
            for parts in contents(dataset[index])
        ]

    assert shown(0) == [[second, "What?"], ["A dog."]]
    assert shown(1) == [[first, "and", second, "differ?"], ["A dog."]]
    assert shown(2) == [
        [first, "and", second, "differ?"],
        ["It is <image>no picture."],
        ["And", first],
        ["A dog."],
    ]
    for index, reason in (
        (3, r"one for each of 1 <image>, got 2$"),
        (4, "expected str or list of"),
    ):
        with pytest.raises(BrokenSampleError, match=f"image: .*{reason}"):
            dataset[index]
