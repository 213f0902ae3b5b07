"""Object masks: COCO instance and panoptic segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from setokim.data.file_dataset import FileDataset
from setokim.data.readers.files import (
    by_key,
    check_root,
    field_of,
    file_in,
    find_file,
    mask_of,
    read_annotated_image,
    read_image,
)
from setokim.data.records import JsonList
from setokim.data.samples import BrokenSampleError, Sample


class CocoInstances(FileDataset):
    """COCO instances, with one mask per object, in the order of the file.

    Where objects overlap, the smaller one lies on top. Crowds are left out. The concepts are the
    categories, and the caption lists them.

    Args:
        root: folder with annotations/instances_SPLIT.json and the folder SPLIT of images.
        split: name of the split, such as "val2017".

    Raises:
        OSError, ValueError: a file is missing or holds something else.
    """

    def __init__(self, root: str | Path, split: str = "val2017"):
        self._root, self._split = check_root(root), split
        path = find_file(self._root, f"annotations/instances_{split}.json")
        self._images = JsonList(path, "images")
        self._names = _names(JsonList(path, "categories"))
        self._objects = by_key(JsonList(path, "annotations"), "image_id")

    def __len__(self) -> int:
        return len(self._images)

    def _source(self, index: int) -> str:
        return self._images.source(index)

    def _read(self, index: int, source: str) -> Sample:
        record = self._images[index]
        name = field_of(record, "file_name", str, source)
        path = file_in(self._root, f"{self._split}/{name}", source)
        image = read_annotated_image(path, (record.get("width"), record.get("height")), source)
        found = self._objects.get(field_of(record, "id", int, source), [])
        objects = [one for one in found if not one.get("iscrowd")]
        names = [_name(self._names, annotation, source) for annotation in objects]
        size = image.size[::-1]
        masks = [mask_of(annotation.get("segmentation"), size, source) for annotation in objects]
        return Sample(image, ", ".join(names), tuple(names), _layers(masks, size), source)


class CocoPanoptic(FileDataset):
    """COCO panoptic: every pixel belongs to one object, to stuff, or to nothing.

    Args:
        root: folder with annotations/panoptic_SPLIT.json, annotations/panoptic_SPLIT/*.png (or
            panoptic_SPLIT/*.png) and the folder SPLIT of images.
        split: name of the split, such as "val2017".

    Raises:
        OSError, ValueError: a file is missing or holds something else.
    """

    def __init__(self, root: str | Path, split: str = "val2017"):
        self._root, self._split = check_root(root), split
        path = find_file(self._root, f"annotations/panoptic_{split}.json")
        inner = f"annotations/panoptic_{split}"
        self._masks = inner if (self._root / inner).is_dir() else f"panoptic_{split}"
        self._records = JsonList(path, "annotations")
        self._names = _names(JsonList(path, "categories"))

    def __len__(self) -> int:
        return len(self._records)

    def _source(self, index: int) -> str:
        return self._records.source(index)

    def _read(self, index: int, source: str) -> Sample:
        record = self._records[index]
        file = field_of(record, "file_name", str, source)
        segments = field_of(record, "segments_info", list, source)
        painted = read_image(file_in(self._root, f"{self._masks}/{file}", source), source, False)
        path = file_in(self._root, f"{self._split}/{file}", source).with_suffix(".jpg")
        image = read_annotated_image(path, painted.size, source)
        # The colours encode segment ids, so that nothing may round here.
        ids = np.asarray(painted).astype(np.int64) @ np.array([1, 256, 256**2])
        names, layers = [], np.zeros(ids.shape, np.int64)
        for number, segment in enumerate(segments, 1):
            inside = ids == field_of(segment, "id", int, source)
            if not inside.any():
                raise BrokenSampleError(
                    source, f"{file}: expected segment {segment['id']}, got none"
                )
            layers[inside] = number
            names.append(_name(self._names, segment, source))
        return Sample(image, ", ".join(names), tuple(names), layers, source)


def _layers(masks: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Return (h, w) int64: 1 + the index of the smallest mask at each pixel, or 0."""
    layers = np.zeros(size, np.int64)
    for number in sorted(range(len(masks)), key=lambda number: -int(masks[number].sum())):
        layers[masks[number]] = number + 1
    return layers


def _names(categories: JsonList) -> dict[Any, Any]:
    return {number: found[-1].get("name") for number, found in by_key(categories, "id").items()}


def _name(names: dict[Any, Any], annotation: Any, source: str) -> str:
    number = field_of(annotation, "category_id", int, source)
    name = names.get(number)
    if not isinstance(name, str):
        raise BrokenSampleError(source, f"category_id: expected one of the file's, got {number}")
    return name
