"""Pictures with captions: COCO, Flickr30K and LAION-aesthetics in their published files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from setokim.data.conversations import Conversation, message
from setokim.data.readers.files import check_root, field_of, find_file, picture_in, picture_of
from setokim.data.records import JsonList, ParquetRows
from setokim.data.samples import BrokenSampleError, Sample, check_index, split_concepts

_ASKED = "describe the picture."


class CocoCaptions:
    """COCO: a picture and all that people say of it.

    The assistant's answer is the first caption. `facts`: "image_id", "answers" (all of them). The
    other way round the first caption is asked for, and the answer is the picture. `facts`:
    "image_id", "caption".

    Args:
        root: folder with annotations/captions_SPLIT.json and the folder SPLIT of pictures.
        split: such as "val2017" or "train2014".
        draw: the other way round.

    Raises:
        OSError, ValueError: a file is not there or holds something else.
    """

    def __init__(self, root: str | Path, split: str = "val2017", draw: bool = False):
        self._folder, self._draw = check_root(root) / split, draw
        path = find_file(check_root(root), f"annotations/captions_{split}.json")
        self._images, captions = JsonList(path, "images"), JsonList(path, "annotations")
        self._captions: dict[int, list[str]] = {}
        for index in range(len(captions)):
            one = captions[index]
            if isinstance(one, dict) and isinstance(one.get("caption"), str):
                self._captions.setdefault(one.get("image_id"), []).append(one["caption"].strip())

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Conversation:
        check_index(index, len(self))
        source, record = self._images.source(index), self._images[index]
        number = field_of(record, "id", int, source)
        picture = picture_of(self._folder / field_of(record, "file_name", str, source), source)
        captions, facts = self._captions.get(number, []), {"image_id": number}
        if self._draw:
            return _asked_for(picture, captions, source, facts)
        return _described(picture, captions, source, facts)


class Flickr30k:
    """Flickr30K in the split of Karpathy: a picture and five captions.

    `facts`: "image_id" (the file's name), "answers".

    Args:
        root: folder with dataset_flickr30k.json and the folder flickr30k-images.
        split: "train", "val" or "test".

    Raises:
        OSError, ValueError: a file is not there or holds something else, or nothing is of the
            split.
    """

    def __init__(self, root: str | Path, split: str = "test"):
        self._root = check_root(root)
        self._records = JsonList(find_file(self._root, "dataset_flickr30k.json"), "images")
        self._chosen = [
            index
            for index in range(len(self._records))
            if isinstance(self._records[index], dict) and self._records[index].get("split") == split
        ]
        if not self._chosen:
            raise ValueError(f"split: expected one of the file's, got {split!r}")

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Conversation:
        check_index(index, len(self))
        place = self._chosen[index]
        source, record = self._records.source(place), self._records[place]
        name = field_of(record, "filename", str, source)
        sentences = field_of(record, "sentences", list, source)
        captions = [field_of(one, "raw", str, source).strip() for one in sentences]
        picture = picture_of(self._root / "flickr30k-images" / name, source)
        return _described(picture, captions, source, {"image_id": name})


class CaptionedParquet:
    """LAION-aesthetics with its pictures in parquet files, as downloaders write them.

    For tar archives see `setokim.data.Shards`.

    Args:
        root: folder with *.parquet.
        image: column of the pictures, bytes or {"bytes", "path"}.
        caption: column of the texts.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: there is no such file.
    """

    def __init__(self, root: str | Path, image: str = "jpg", caption: str = "caption"):
        paths = sorted(check_root(root).rglob("*.parquet"))
        if not paths:
            raise ValueError(f"root: expected *.parquet in {root}, got none")
        self._records, self._image, self._caption = ParquetRows(paths), image, caption

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        check_index(index, len(self))
        source, record = self._records.source(index), self._records[index]
        caption = field_of(record, self._caption, str, source).strip()
        picture = picture_in(record.get(self._image), source, self._image)
        return Sample(picture, caption, split_concepts(caption), None, source)


def _asked_for(picture, captions: list[str], source: str, facts: dict[str, Any]) -> Conversation:
    _check_captions(captions, source)
    turns = message("user", f"draw {captions[0]}"), message("assistant", picture)
    return Conversation("generate", turns, (), source, facts | {"caption": captions[0]})


def _check_captions(captions: list[str], source: str) -> None:
    if not captions:
        raise BrokenSampleError(source, "it has no caption")


def _described(picture, captions: list[str], source: str, facts: dict[str, Any]) -> Conversation:
    _check_captions(captions, source)
    turns = message("user", picture, _ASKED), message("assistant", captions[0])
    return Conversation("caption", turns, (), source, facts | {"answers": captions})
