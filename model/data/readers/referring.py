"""Phrases that refer to an object: refCOCO+, refCOCOg and ReasonSeg in their published files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from setokim.data.conversations import SEG, Conversation, message
from setokim.data.polygon_pixels import polygon_pixels
from setokim.data.readers.files import check_root, field_of, picture_of
from setokim.data.records import JsonList, read_plain_pickle
from setokim.data.rle import decode_rle, encode_rle
from setokim.data.samples import BrokenSampleError, check_index

# By data set, the folder and the file of references.
_REFERENCES = {"refcoco+": ("refcoco+", "refs(unc).p"), "refcocog": ("refcocog", "refs(umd).p")}
_SUFFIXES = (".jpg", ".jpeg", ".png")
_TARGET, _IGNORED = 1, 255


class ReferringExpressions:
    """refCOCO+ and refCOCOg (UMD): one phrase of people a sample, with the mask of its object.

    `facts`: "ref_id", "sent_id", "phrase".

    Args:
        root: folder with refcoco+ or refcocog, in it the pickle of references and instances.json,
            and the folder train2014 of COCO's pictures.
        name: "refcoco+" or "refcocog".
        split: "train", "val", "test", or "testA" and "testB" of refCOCO+.

    Raises:
        ValueError: a file is not there or holds something else, or nothing is of this split.
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
        self._objects = _by_id(JsonList(instances, "annotations"))
        self._images = _by_id(JsonList(instances, "images"))
        # Reference and sentence of each sample.
        self._samples: list[tuple[int, Any, Any]] = [
            (number, reference, sentence)
            for number, reference in enumerate(references)
            if isinstance(reference, Mapping) and reference.get("split") == split
            for sentence in reference.get("sentences") or [None]
        ]
        if not self._samples:
            raise ValueError(f"split: expected one of {self._path}, got {split!r}")

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Conversation:
        check_index(index, len(self))
        number, reference, sentence = self._samples[index]
        source = f"{self._path}: reference {number}"
        phrase = field_of(sentence, "sent", str, source)
        annotation = self._objects.get(field_of(reference, "ann_id", int, source))
        image = self._images.get(field_of(reference, "image_id", int, source))
        if annotation is None or image is None:
            raise BrokenSampleError(source, "its object or picture is not in instances.json")
        name = field_of(image, "file_name", str, source)
        picture = picture_of(self._root / "train2014" / name, source)
        mask = mask_of(annotation.get("segmentation"), picture.size[::-1], source)
        facts = {
            "ref_id": field_of(reference, "ref_id", int, source),
            "sent_id": field_of(sentence, "sent_id", int, source),
            "phrase": phrase,
        }
        turns = message("user", picture, f"segment the {phrase}."), message("assistant", SEG)
        return Conversation("segment", turns, (mask,), source, facts)


class ReasonSeg:
    """ReasonSeg: a question or phrase that asks for a region, and the region as polygons.

    The first text is asked. Shapes are drawn from the largest to the smallest, those whose label
    holds "ignore" as what counts neither way, and those labelled "flag" not at all, as the official
    loader does.

    `facts`: "name", "phrase", "is_sentence" and "ignored", run lengths of what does not count.

    Args:
        root: folder of a split: NAME.jpg and NAME.json.

    Raises:
        ValueError: there is no such folder, or no JSON file in it.
    """

    def __init__(self, root: str | Path):
        self._root = check_root(root)
        self._files = sorted(self._root.glob("*.json"))
        if not self._files:
            raise ValueError(f"root: expected NAME.json in {root}, got none")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Conversation:
        check_index(index, len(self))
        path = self._files[index]
        record = _record(path)
        texts = field_of(record, "text", list, str(path))
        shapes = field_of(record, "shapes", list, str(path))
        if not texts or not isinstance(texts[0], str):
            raise BrokenSampleError(str(path), f"text: expected a text first, got {texts!r:.80}")
        picture = picture_of(_beside(path), str(path))
        drawn = [_drawn(shape, picture.size, str(path)) for shape in shapes]
        levels = np.zeros(picture.size[::-1], np.uint8)
        # Of equal ones the first lies on top: the official loader turns an ascending order round.
        for level, inside in sorted(drawn, key=lambda pair: int(pair[1].sum()))[::-1]:
            levels[inside] = level
        is_sentence = bool(record.get("is_sentence"))
        asked = texts[0] if is_sentence else f"segment the {texts[0]}."
        facts = {
            "name": path.stem,
            "phrase": texts[0],
            "is_sentence": is_sentence,
            "ignored": encode_rle(levels == _IGNORED),
        }
        turns = message("user", picture, asked), message("assistant", SEG)
        return Conversation("segment", turns, (levels == _TARGET,), str(path), facts)


def mask_of(segmentation: Any, size: tuple[int, int], source: str) -> np.ndarray:
    """The mask of an annotation of COCO: polygons, or run lengths.

    Args:
        segmentation: list of polygons, each a flat list of x and y, or a dict of run lengths.
        size: height and width of the picture.
        source: of the record.

    Returns:
        (h, w) bool.

    Raises:
        BrokenSampleError: it is neither, or of another size.
        ImportError: there are polygons, and pycocotools is not installed.
    """
    try:
        if isinstance(segmentation, Mapping):
            mask = decode_rle(segmentation)
        elif isinstance(segmentation, list) and segmentation:
            mask = _polygons(segmentation, size)
        else:
            raise ValueError(f"expected polygons or run lengths, got {segmentation!r:.80}")
    except ValueError as error:
        raise BrokenSampleError(source, f"segmentation: {error}") from error
    if mask.shape != size:
        reason = f"segmentation: expected the picture's size {size}, got {mask.shape}"
        raise BrokenSampleError(source, reason)
    return mask


def _polygons(polygons: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    # Which pixels an edge takes is what pycocotools says it is.
    from pycocotools import mask as coco

    for polygon in polygons:
        if (
            not isinstance(polygon, list)
            or len(polygon) < 6
            or len(polygon) % 2
            or not all(isinstance(value, int | float) for value in polygon)
        ):
            raise ValueError(f"expected at least three corners x, y, got {polygon!r:.80}")
    return decode_rle(coco.merge(coco.frPyObjects(polygons, *size)))


def _by_id(records: JsonList) -> dict[int, dict[str, Any]]:
    items = (records[index] for index in range(len(records)))
    return {item["id"]: item for item in items if isinstance(item, dict) and "id" in item}


def _record(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError) as error:
        # Two of the published files are not UTF-8.
        raise BrokenSampleError(str(path), f"cannot read it: {error}") from error


def _beside(path: Path) -> Path:
    found = (path.with_suffix(suffix) for suffix in _SUFFIXES)
    return next((file for file in found if file.is_file()), path.with_suffix(".jpg"))


def _drawn(shape: Any, size: tuple[int, int], source: str) -> tuple[int, np.ndarray]:
    """What a shape of ReasonSeg stands for, and (h, w) bool where it is."""
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
