import numpy as np
import pytest
from PIL import Image

from setokim.data import (
    ENDLESS,
    Broken,
    BrokenSampleError,
    GuardedCollator,
    ImageFolder,
    Reading,
    Sample,
    ShapesTasks,
    ShapesWorld,
    build_dataset,
)
from setokim.data.build import First


@pytest.fixture
def folder(tmp_path):
    """Three images, the second with a caption."""
    for i in range(3):
        Image.new("RGB", (2, 2), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.txt").write_text("a dog and a cat")
    return tmp_path


def test_shapes_world_takes_its_settings():
    dataset = build_dataset("shapes-world", size=16, seed=5, objects=(3, 3), length=9)
    same = ShapesWorld(5, length=9, size=16, objects=(3, 3))
    assert len(dataset) == 9
    assert dataset[4].caption == same[4].caption and len(dataset[4].concepts) == 3
    assert np.array_equal(dataset[4].image, same[4].image) and dataset[4].image.size == (16, 16)
    assert len(build_dataset("shapes-world")) == ENDLESS
    assert build_dataset("shapes-world")[0].image.size == (64, 64)


def test_shapes_tasks_take_their_settings():
    options = {"tasks": {"edit": 1.0}, "objects": [1, 3], "visible": 0.9}
    dataset = build_dataset("shapes-tasks", size=16, seed=5, length=9, **options)
    same = ShapesTasks(5, length=9, size=16, **options)
    assert len(dataset) == 9 and dataset[4].facts == same[4].facts
    assert dataset[4].messages[1]["content"][0]["image"].size == (16, 16)
    assert len(build_dataset("shapes-tasks", samples=7)) == 7


def test_folders_take_their_settings(folder):
    dataset = build_dataset("folder", str(folder))
    assert isinstance(dataset, ImageFolder) and len(dataset) == 3
    assert [dataset[i].concepts for i in range(3)] == [(), ("dog", "cat"), ()]
    silent = build_dataset("folder", str(folder), captions=False)
    assert silent[1].concepts == ()


def test_the_first_samples(folder):
    first = build_dataset("folder", str(folder), samples=2)
    assert len(first) == 2 and first[1].caption == "a dog and a cat"
    for index in (2, -1):
        with pytest.raises(IndexError, match=f"index: expected .*, got {index}"):
            first[index]
    with pytest.raises(TypeError, match=r"index: expected an int, got 0\.5"):
        first[0.5]
    # Going through it ends.
    assert [sample.caption for sample in first] == ["", "a dog and a cat"]
    assert len(build_dataset("folder", str(folder), samples=9)) == 3
    assert len(build_dataset("shapes-world", samples=7)) == 7


@pytest.mark.parametrize("samples", [0, -1])
def test_no_samples_are_refused(folder, samples):
    with pytest.raises(ValueError, match=f"samples: expected at least 1, got {samples}"):
        First(ImageFolder(folder), samples)
    with pytest.raises(TypeError, match="samples: expected an int, got True"):
        First(ImageFolder(folder), True)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("movies",), {}, ValueError, "kind: expected one of shapes-world, shapes-tasks, .*got 'm"),
        (("shapes-world", "p"), {}, ValueError, "path: expected None for kind='shapes-world', got"),
        (("shapes-tasks", "p"), {}, ValueError, "path: expected None for kind='shapes-tasks', got"),
        (("folder",), {}, ValueError, "path: expected a path for kind='folder', got None"),
        (("shards",), {}, ValueError, "path: expected a path for kind='shards', got None"),
        (("folder", "/nowhere"), {}, ValueError, "root: expected a folder, got '/nowhere'"),
        (("shapes-world",), {"size": 0}, ValueError, "size: expected at least 1, got 0"),
        (("shapes-world",), {"colour": 1}, TypeError, "unexpected keyword argument 'colour'"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=message):
        build_dataset(*arguments, **options)


def test_batches_come_with_one_report():
    samples = [Sample(Image.new("RGB", (1, 1)), str(i), (), None, "") for i in range(2)]
    torn = Broken(3, "3.png", "torn")
    readings = [Reading((3, 4), (torn,)), Reading((7,), ())]
    collate = GuardedCollator(lambda batch: {"captions": [sample.caption for sample in batch]})
    batch, reading = collate(list(zip(samples, readings, strict=True)))
    assert batch == {"captions": ["0", "1"]}
    assert reading == Reading((3, 4, 7), (torn,))


def test_a_mixture_takes_its_parts(folder):
    parts = {
        "drawn": {"kind": "shapes-world", "weight": 3, "options": {"objects": [1, 2]}},
        "read": {"kind": "folder", "path": str(folder), "weight": 1},
    }
    dataset = build_dataset("mixture", size=16, seed=5, parts=parts)
    samples = [dataset[index] for index in range(1000)]
    drawn = [sample for sample in samples if sample.source.startswith("shapes-world")]
    assert len(dataset) == ENDLESS and len(drawn) == 750
    assert drawn[0].image.size == (16, 16)
    assert np.array_equal(drawn[1].image, ShapesWorld(5, size=16, objects=(1, 2))[1].image)
    assert len(build_dataset("mixture", samples=7, parts=parts)) == 7
    with pytest.raises(ValueError, match=r"^parts\['read'\]: expected kind and weight, got \{"):
        build_dataset("mixture", parts={"read": {"kind": "folder", "path": str(folder)}})
    with pytest.raises(ValueError, match=r"^path: expected None for kind='mixture', got 'a'$"):
        build_dataset("mixture", "a", parts=parts)


def parts_of(conversation):
    return [
        part.get("text", part.get("image"))
        for message in conversation.messages
        for part in message["content"]
    ]


@pytest.mark.parametrize(
    ("pairs", "tasks"),
    [("caption", ["caption"]), ("generate", ["generate"]), ("both", ["caption", "generate"])],
)
def test_images_with_captions_as_conversations(folder, pairs, tasks):
    for name in ("0", "2"):
        (folder / f"{name}.txt").write_text(f"image {name}")
    dataset = build_dataset("folder", str(folder), pairs=pairs)
    found = [dataset[index] for index in range(len(dataset))]
    assert [one.task for one in found] == tasks * 3
    captions = ["image 0", "a dog and a cat", "image 2"]
    for number, one in enumerate(found):
        index = number // len(tasks)
        said = parts_of(one)
        image = said.pop(0 if one.task == "caption" else 1)
        assert image.getpixel((0, 0)) == (index, 0, 0)
        assert one.source == str(folder / f"{index}.png")
        if one.task == "caption":
            assert said == ["describe the picture.", captions[index]]
            assert one.facts == {"answers": [captions[index]]}
        else:
            assert said == [f"draw {captions[index]}"]
            assert one.facts == {"caption": captions[index]}
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    assert len(build_dataset("folder", str(folder), samples=1, pairs=pairs)) == 1


def test_an_image_without_a_caption_is_broken(folder):
    dataset = build_dataset("folder", str(folder), pairs="both")
    for index in (0, 1, 4, 5):
        with pytest.raises(BrokenSampleError, match=r"\.png: it has no caption$"):
            dataset[index]
    assert dataset[2].task == "caption" and dataset[3].task == "generate"


def test_pairs_that_are_none(folder):
    with pytest.raises(ValueError, match=r"^pairs: expected one of caption, generate, both, got '"):
        build_dataset("folder", str(folder), pairs="edit")
    expected = r"^pairs: expected None for a data set of Conversation, got 'both'$"
    with pytest.raises(ValueError, match=expected):
        build_dataset("shapes-tasks", pairs="both")
    # What is broken says nothing of the others.
    (folder / "0.png").write_bytes(b"")
    assert build_dataset("folder", str(folder), pairs="both")[2].task == "caption"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"kind": "folder"}, r"root: expected a folder, got 'data/none'$"),
        ({"kind": "shards"}, r"paths: expected files, got 'data/none'$"),
        ({"kind": "gqa"}, r"root: expected a folder, got 'data/none'$"),
        ({"kind": "movies"}, r"kind: expected one of "),
        ({"kind": "mixture", "path": None, "options": {"parts": {"in": {}}}}, r"parts\['in'\]: "),
    ],
)
def test_a_part_that_cannot_be_opened_is_named(folder, part, message):
    parts = {
        "there": {"kind": "folder", "path": str(folder), "weight": 1},
        "gone": {"path": "data/none", "weight": 1} | part,
    }
    with pytest.raises(ValueError, match=rf"^parts\['gone'\]: {message}"):
        build_dataset("mixture", parts=parts)


def test_options_and_files_of_a_part_are_named_too(tmp_path):
    part = {"kind": "llava-665k", "path": str(tmp_path), "weight": 1}
    missing = rf"^parts\['chats'\]: .*{tmp_path}/llava_v1_5_mix665k\.json"
    with pytest.raises(ValueError, match=missing):
        build_dataset("mixture", parts={"chats": part})
    with pytest.raises(TypeError, match=r"^parts\['chats'\]: .*unexpected keyword .*'colour'"):
        build_dataset("mixture", parts={"chats": part | {"options": {"colour": 1}}})
