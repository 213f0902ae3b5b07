"""Referring segmentation: refCOCO, refCOCO+, refCOCOg and ReasonSeg in their published files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from setokim.data.conversations import MASK, Conversation, Regions, message
from setokim.data.file_dataset import FileDataset
from setokim.data.plain_pickle import read_plain_pickle
from setokim.data.polygon_pixels import polygon_pixels
from setokim.data.readers.files import (
    by_key,
    check_root,
    field_of,
    file_in,
    mask_of,
    read_annotated_image,
    read_image,
)
from setokim.data.records import JsonList, read_json
from setokim.data.rle import check_polygon, encode_rle
from setokim.data.samples import BrokenSampleError

# Folder and file of the references, by data set.
_REFERENCES = {
    "refcoco": ("refcoco", "refs(unc).p"),
    "refcoco+": ("refcoco+", "refs(unc).p"),
    "refcocog": ("refcocog", "refs(umd).p"),
    "refcocog-google": ("refcocog", "refs(google).p"),
}
_SUFFIXES = (".jpg", ".jpeg", ".png")
_TARGET, _IGNORED = 1, 255


class ReferringExpressions(FileDataset):
    """refCOCO, refCOCO+, refCOCOg: one referring phrase a sample, with the mask of its object.

    The phrase also names the region of the object (`Conversation.regions`).

    `facts`: "ref_id", "sent_id", "phrase".

    Args:
        root: folder with the folder train2014 of COCO's images, and refcoco, refcoco+ or refcocog
            with the pickle of references and instances.json.
        name: "refcoco", "refcoco+", "refcocog" (partition of UMD) or "refcocog-google".
        split: "train" or "val"; also "testA" and "testB" of refCOCO and refCOCO+, and "test" of
            refCOCOg (UMD). Google's partition has no test split.

    Raises:
        ValueError: a file is missing or holds something else, or the split is empty.
    """

    def __init__(self, root: str | Path, name: str, split: str = "val"):
        if name not in _REFERENCES:
            raise ValueError(f"name: expected one of {', '.join(_REFERENCES)}, got {name!r}")
        self._root = check_root(root)
        folder, file = _REFERENCES[name]
        self._path = self._root / folder / file
        try:
            references = read_plain_pickle(self._path)
        except OSError as error:
            raise ValueError(f"root: expected {folder}/{file} in {root}, got {error}") from error
        if not isinstance(references, list):
            got = type(references).__name__
            raise ValueError(f"{self._path}: expected a list of references, got {got}")
        instances = self._root / folder / "instances.json"
        self._objects = by_key(JsonList(instances, "annotations"), "id")
        self._images = by_key(JsonList(instances, "images"), "id")
        # Reference and sentence of each sample.
        self._samples: list[tuple[int, Any, Any]] = [
            (number, reference, sentence)
            for number, reference in enumerate(references)
            if isinstance(reference, Mapping) and reference.get("split") == split
            for sentence in _sentences(reference)
        ]
        if not self._samples:
            raise ValueError(f"split: expected one of {self._path}, got {split!r}")

    def __len__(self) -> int:
        return len(self._samples)

    def _source(self, index: int) -> str:
        return f"{self._path}: reference {self._samples[index][0]}"

    def _read(self, index: int, source: str) -> Conversation:
        _, reference, sentence = self._samples[index]
        phrase = field_of(sentence, "sent", str, source)
        annotations = self._objects.get(field_of(reference, "ann_id", int, source))
        images = self._images.get(field_of(reference, "image_id", int, source))
        if annotations is None or images is None:
            raise BrokenSampleError(source, "its object or image is not in instances.json")
        annotation, record = annotations[-1], images[-1]
        name = field_of(record, "file_name", str, source)
        path = file_in(self._root, f"train2014/{name}", source)
        image = read_annotated_image(path, (record.get("width"), record.get("height")), source)
        mask = mask_of(annotation.get("segmentation"), image.size[::-1], source)
        facts = {
            "ref_id": field_of(reference, "ref_id", int, source),
            "sent_id": field_of(sentence, "sent_id", int, source),
            "phrase": phrase,
        }
        turns = message("user", image, f"segment the {phrase}."), message("assistant", MASK)
        regions = (Regions(np.where(mask, 0, -1), (phrase,)),)
        return Conversation("segment", turns, (mask,), source, facts, regions)


class ReasonSeg(FileDataset):
    """ReasonSeg: a question or phrase about a region, and the region as polygons.

    The first text is the question. As in the official loader, shapes are rasterized from the
    largest to the smallest. A label with "ignore" marks pixels that count neither way, and shapes
    labelled "flag" are skipped. Images are rotated by their EXIF orientation, also as there.

    `facts`: "name", "phrase", "is_sentence" and "ignored", run lengths of the ignored pixels.

    Args:
        root: folder of a split: NAME.jpg and NAME.json.

    Raises:
        ValueError: the folder does not exist or has no JSON file.
    """

    def __init__(self, root: str | Path):
        self._root = check_root(root)
        self._files = sorted(self._root.glob("*.json"))
        if not self._files:
            raise ValueError(f"root: expected NAME.json in {root}, got none")

    def __len__(self) -> int:
        return len(self._files)

    def _source(self, index: int) -> str:
        return str(self._files[index])

    def _read(self, index: int, source: str) -> Conversation:
        path = self._files[index]
        record = _record(path)
        texts = field_of(record, "text", list, str(path))
        shapes = field_of(record, "shapes", list, str(path))
        if not texts or not isinstance(texts[0], str):
            raise BrokenSampleError(str(path), f"text: expected a list of texts, got {texts!r:.80}")
        image = read_image(_beside(path), str(path))
        shapes = _checked_shapes(shapes, image.size, str(path))
        regions = [_region(shape, image.size, str(path)) for shape in shapes]
        levels = np.zeros(image.size[::-1], np.uint8)
        # Of equal sizes the first lies on top: the official loader reverses an ascending order.
        for level, inside in sorted(regions, key=lambda pair: int(pair[1].sum()))[::-1]:
            levels[inside] = level
        is_sentence = bool(record.get("is_sentence"))
        prompt = texts[0] if is_sentence else f"segment the {texts[0]}."
        facts = {
            "name": path.stem,
            "phrase": texts[0],
            "is_sentence": is_sentence,
            "ignored": encode_rle(levels == _IGNORED),
        }
        turns = message("user", image, prompt), message("assistant", MASK)
        return Conversation("segment", turns, (levels == _TARGET,), str(path), facts)


def _sentences(reference: Mapping[str, Any]) -> list[Any]:
    """Return the sentences about an object, or None for unreadable ones."""
    sentences = reference.get("sentences")
    return sentences if isinstance(sentences, list) and sentences else [None]


def _record(path: Path) -> Any:
    try:
        # Two of the published files are in cp1252.
        return read_json(path, "cp1252")
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise BrokenSampleError(str(path), f"cannot read it: {reason}") from error


def _checked_shapes(shapes: list[Any], size: tuple[int, int], source: str) -> list[Any]:
    """Check the corners of all shapes, and drop shapes with fewer than two.

    Raises:
        BrokenSampleError: a corner is malformed or far outside the image, or no shape is left.
    """
    left = []
    for shape in shapes:
        points = field_of(shape, "points", list, source)
        if not all(map(_is_corner, points)):
            reason = f"points: expected x and y of corners, got {points!r:.80}"
            raise BrokenSampleError(source, reason)
        try:
            check_polygon([value for point in points for value in point], size[::-1])
        except ValueError as error:
            raise BrokenSampleError(source, f"points: {error}") from error
        left += [shape] if len(points) > 1 else []
    if shapes and not left:
        raise BrokenSampleError(source, "shapes: expected a polygon with corners, got none")
    return left


def _beside(path: Path) -> Path:
    found = (path.with_suffix(suffix) for suffix in _SUFFIXES)
    return next((file for file in found if file.is_file()), path.with_suffix(".jpg"))


def _region(shape: Any, size: tuple[int, int], source: str) -> tuple[int, np.ndarray]:
    """Return the level of a shape of ReasonSeg, and (h, w) bool of its pixels."""
    label = field_of(shape, "label", str, source).lower()
    points = field_of(shape, "points", list, source)
    if len(points) < 2 or not all(map(_is_corner, points)):
        raise BrokenSampleError(source, f"points: expected x and y of corners, got {points!r:.80}")
    if label == "flag":
        return _TARGET, np.zeros(size[::-1], bool)
    try:
        return _IGNORED if "ignore" in label else _TARGET, polygon_pixels(points, size[::-1])
    except ValueError as error:
        raise BrokenSampleError(source, f"points: {error}") from error


def _is_corner(point: Any) -> bool:
    return (
        isinstance(point, list)
        and len(point) == 2
        and all(isinstance(value, int | float) for value in point)
    )
