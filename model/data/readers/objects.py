"""Pictures with the masks of their objects: COCO instances and panoptic segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from setokim.data.readers.files import check_root, field_of, find_file, picture_of
from setokim.data.readers.referring import mask_of
from setokim.data.records import JsonList
from setokim.data.samples import BrokenSampleError, Sample, check_index


class CocoInstances:
    """COCO instances: the masks are of the objects, in the order of the file.

    Where objects overlap, the smaller one lies on top. Crowds are left out. The caption lists the
    categories, which are the concepts.

    Args:
        root: folder with annotations/instances_SPLIT.json and the folder SPLIT of pictures.
        split: such as "val2017".

    Raises:
        OSError, ValueError: a file is not there or holds something else.
    """

    def __init__(self, root: str | Path, split: str = "val2017"):
        folder = check_root(root)
        self._folder = folder / split
        path = find_file(folder, f"annotations/instances_{split}.json")
        self._images = JsonList(path, "images")
        self._names = _names(JsonList(path, "categories"))
        annotations = JsonList(path, "annotations")
        self._objects: dict[Any, list[dict]] = {}
        for index in range(len(annotations)):
            one = annotations[index]
            if isinstance(one, dict) and not one.get("iscrowd"):
                self._objects.setdefault(one.get("image_id"), []).append(one)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        check_index(index, len(self))
        source, record = self._images.source(index), self._images[index]
        picture = picture_of(self._folder / field_of(record, "file_name", str, source), source)
        objects = self._objects.get(field_of(record, "id", int, source), [])
        names = [_name(self._names, thing, source) for thing in objects]
        size = picture.size[::-1]
        masks = [mask_of(thing.get("segmentation"), size, source) for thing in objects]
        return Sample(picture, ", ".join(names), tuple(names), _layers(masks, size), source)


class CocoPanoptic:
    """COCO panoptic: every pixel belongs to one object, to stuff, or to nothing.

    Args:
        root: folder with annotations/panoptic_SPLIT.json, annotations/panoptic_SPLIT/*.png (or
            panoptic_SPLIT/*.png) and the folder SPLIT of pictures.
        split: such as "val2017".

    Raises:
        OSError, ValueError: a file is not there or holds something else.
    """

    def __init__(self, root: str | Path, split: str = "val2017"):
        folder = check_root(root)
        path = find_file(folder, f"annotations/panoptic_{split}.json")
        inner = folder / "annotations" / f"panoptic_{split}"
        self._masks = inner if inner.is_dir() else folder / f"panoptic_{split}"
        self._folder = folder / split
        self._records = JsonList(path, "annotations")
        self._names = _names(JsonList(path, "categories"))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        check_index(index, len(self))
        source, record = self._records.source(index), self._records[index]
        file = field_of(record, "file_name", str, source)
        segments = field_of(record, "segments_info", list, source)
        picture = picture_of(self._folder / Path(file).with_suffix(".jpg"), source)
        # Nothing may round here: the colours are numbers.
        painted = np.asarray(picture_of(self._masks / file, source)).astype(np.int64)
        ids = painted @ np.array([1, 256, 256**2])
        if ids.shape != picture.size[::-1]:
            reason = f"{file}: expected the picture's size {picture.size[::-1]}, got {ids.shape}"
            raise BrokenSampleError(source, reason)
        names, layers = [], np.zeros(ids.shape, np.int64)
        for number, segment in enumerate(segments, 1):
            inside = ids == field_of(segment, "id", int, source)
            if not inside.any():
                raise BrokenSampleError(
                    source, f"{file}: expected segment {segment['id']}, got none"
                )
            layers[inside] = number
            names.append(_name(self._names, segment, source))
        return Sample(picture, ", ".join(names), tuple(names), layers, source)


def _layers(masks: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """(h, w) int64: 0, or 1 + the number of the smallest mask there."""
    layers = np.zeros(size, np.int64)
    for number in sorted(range(len(masks)), key=lambda number: -int(masks[number].sum())):
        layers[masks[number]] = number + 1
    return layers


def _names(categories: JsonList) -> dict[Any, Any]:
    items = (categories[index] for index in range(len(categories)))
    return {one.get("id"): one.get("name") for one in items if isinstance(one, dict)}


def _name(names: dict[Any, Any], thing: Any, source: str) -> str:
    number = field_of(thing, "category_id", int, source)
    name = names.get(number)
    if not isinstance(name, str):
        raise BrokenSampleError(source, f"category_id: expected one of the file's, got {number}")
    return name
