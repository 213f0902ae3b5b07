"""Reading of texts without the files of their images."""

import pytest

from helpers.published import PUBLISHED
from setokim.data import BrokenSampleError
from setokim.data.readers import READERS
from setokim.data.readers.files import blank_images


@pytest.mark.parametrize("name", ["vqav2", "gqa", "mme", "flickr30k"])
def test_only_the_pixels_differ(name, tmp_path):
    make, options = PUBLISHED[name]
    make(tmp_path)
    dataset = READERS[name](tmp_path, **options)
    usual = [dataset[index] for index in range(len(dataset))]
    for path in [*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*.png")]:
        path.unlink()
    with blank_images():
        found = [dataset[index] for index in range(len(dataset))]
    for one, other in zip(usual, found, strict=True):
        assert (one.facts, one.source, one.task) == (other.facts, other.source, other.task)
        parts = [part for message in other.messages for part in message["content"]]
        assert {part["image"].size for part in parts if part["type"] == "image"} == {(1, 1)}
        texts = [part for part in parts if part["type"] == "text"]
        assert [
            part for message in one.messages for part in message["content"] if "text" in part
        ] == texts
    with pytest.raises(BrokenSampleError):
        dataset[0]


def test_images_in_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    PUBLISHED["laion-parquet"][0](tmp_path)
    dataset = READERS["laion-parquet"](tmp_path)
    with blank_images():
        assert dataset[0].image.size == (1, 1)
    assert dataset[0].image.size != (1, 1)


def test_the_subset_of_pope(tmp_path):
    PUBLISHED["pope"][0](tmp_path)
    facts = READERS["pope"](tmp_path, split="random")[1].facts
    assert facts == {
        "question_id": 2,
        "image": "COCO_val2014_000000000002.jpg",
        "category": "random",
        "label": "no",
    }
