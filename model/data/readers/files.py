"""What readers of published data sets share: files of a split, pictures, fields of records."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from setokim.data.image_processing import NamedBytes, UnreadableImageError, load_image
from setokim.data.records import Records
from setokim.data.rle import decode_segmentation
from setokim.data.samples import BrokenSampleError


def check_root(root: str | Path) -> Path:
    """The folder of a data set.

    Raises:
        ValueError: there is no such folder.
    """
    path = Path(root)
    if not path.is_dir():
        raise ValueError(f"root: expected a folder, got {str(root)!r}")
    return path


def find_file(root: Path, *names: str) -> Path:
    """The first of some files that is there; a data set may have been packed in several ways.

    Raises:
        ValueError: none of them is.
    """
    for name in names:
        if (root / name).is_file():
            return root / name
    raise ValueError(f"root: expected {' or '.join(names)} in {root}, got none")


def file_in(root: Path, name: str, source: str) -> Path:
    """The file below a folder that a record names; a slash at the beginning means that folder.

    Args:
        root: folder of the data set.
        name: path as the record has it.
        source: of the record.

    Raises:
        BrokenSampleError: the name leads out of the folder.
    """
    path = posixpath.normpath(name.lstrip("/"))
    if path.split("/")[0] == "..":
        raise BrokenSampleError(source, f"expected a file in {root}, got {name!r:.80}")
    return root / path


def picture_of(path: Path, source: str, upright: bool = True) -> Image.Image:
    """A picture in a file, as 8-bit RGB.

    Args:
        path: of the file.
        source: of the record that names it.
        upright: turn it as EXIF says.

    Raises:
        BrokenSampleError: it is not there, or no picture.
    """
    try:
        return load_image(path, upright)
    except UnreadableImageError as error:
        raise BrokenSampleError(source, str(error)) from error


def annotated_picture(path: Path, size: tuple[Any, Any], source: str) -> Image.Image:
    """An image of COCO with its pixels where the annotations have them.

    Annotations are of the pixels as stored, not turned as EXIF says, unless their file gives the
    size of the upright image.

    Args:
        path: of the image.
        size: width and height in the annotation file; None where it has none.
        source: of the record.

    Raises:
        BrokenSampleError: it is not there, no image, or of neither size.
    """
    stored = picture_of(path, source, upright=False)
    if None in size or stored.size == size:
        return stored
    upright = picture_of(path, source)
    if upright.size != size:
        expected = f"{size[0]} × {size[1]} pixels"
        got = f"{stored.width} × {stored.height}"
        raise BrokenSampleError(source, f"{path.name}: expected {expected}, got {got}")
    return upright


def mask_of(segmentation: Any, size: tuple[int, int], source: str) -> np.ndarray:
    """(h, w) bool of an annotation of COCO, as `decode_segmentation`.

    Raises:
        BrokenSampleError: it is no mask of that size.
        ImportError: there are polygons, and pycocotools is not installed.
    """
    try:
        return decode_segmentation(segmentation, size)
    except ValueError as error:
        raise BrokenSampleError(source, f"segmentation: {error}") from error


def picture_in(data: Any, source: str, field: str) -> Image.Image:
    """A picture in a parquet row, as bytes or {"bytes", "path"} of Hugging Face's data sets.

    Raises:
        BrokenSampleError: there are no bytes, or they are no picture.
    """
    if isinstance(data, Mapping):
        data = data.get("bytes")
    if not isinstance(data, bytes):
        got = type(data).__name__
        raise BrokenSampleError(source, f"{field}: expected the bytes of a picture, got {got}")
    try:
        return load_image(NamedBytes(data, field))
    except UnreadableImageError as error:
        raise BrokenSampleError(source, str(error)) from error


def field_of(record: Any, name: str, kind: type | tuple[type, ...], source: str) -> Any:
    """A field of a record.

    Raises:
        BrokenSampleError: the record is no object, has no such field, or one of another type.
    """
    value = record.get(name) if isinstance(record, Mapping) else None
    # True is an int to Python, and none to JSON.
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise BrokenSampleError(source, f"{name}: expected {kinds}, got {value!r:.80}")
    return value


def by_key(records: Records, name: str) -> dict[Any, list[dict[str, Any]]]:
    """Objects of a list by their field `name`, a number or text; any others are left out."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for index in range(len(records)):
        one = records[index]
        key = one.get(name) if isinstance(one, dict) else None
        if isinstance(key, int | float | str):
            found.setdefault(key, []).append(one)
    return found
