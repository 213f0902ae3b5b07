"""Shared helpers of the readers: files of a split, images, fields of records."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from setokim.data.image_processing import NamedBytes, UnreadableImageError, load_image
from setokim.data.records import Records
from setokim.data.rle import decode_segmentation
from setokim.data.samples import BrokenSampleError

_ARE_BLANK: ContextVar[bool] = ContextVar("are_blank", default=False)


@contextlib.contextmanager
def blank_images() -> Iterator[None]:
    """Replace all images by one pixel within the block, for programs that need texts only.

    Files of images may be absent. Masks of annotations need the size of their image, so samples
    with masks cannot be read.
    """
    token = _ARE_BLANK.set(True)
    try:
        yield
    finally:
        _ARE_BLANK.reset(token)


def check_root(root: str | Path) -> Path:
    """Check and return the folder of a data set.

    Raises:
        ValueError: the folder does not exist.
    """
    path = Path(root)
    if not path.is_dir():
        raise ValueError(f"root: expected a folder, got {str(root)!r}")
    return path


def find_file(root: Path, *names: str) -> Path:
    """Return the first existing file of several; a data set may be packed in several ways.

    Raises:
        ValueError: none of them exists.
    """
    for name in names:
        if (root / name).is_file():
            return root / name
    raise ValueError(f"root: expected {' or '.join(names)} in {root}, got none")


def file_in(root: Path, name: str, source: str) -> Path:
    """Return the path of a record's file below a folder, which a leading slash stands for.

    Args:
        root: folder of the data set.
        name: path in the record.
        source: name of the record, for messages.

    Raises:
        BrokenSampleError: the name leads out of the folder.
    """
    path = posixpath.normpath(name.lstrip("/"))
    if path.split("/")[0] == "..":
        raise BrokenSampleError(source, f"expected a file in {root}, got {name!r:.80}")
    return root / path


def read_image(path: Path, source: str, upright: bool = True) -> Image.Image:
    """Read an image file as 8-bit RGB.

    Args:
        path: path of the file.
        source: name of the record, for messages.
        upright: rotation by the EXIF orientation.

    Raises:
        BrokenSampleError: the file is missing, or no image.
    """
    if _ARE_BLANK.get():
        return Image.new("RGB", (1, 1))
    try:
        return load_image(path, upright)
    except UnreadableImageError as error:
        raise BrokenSampleError(source, str(error)) from error


def read_annotated_image(path: Path, size: tuple[Any, Any], source: str) -> Image.Image:
    """Read an image of COCO in the orientation of its annotations.

    Annotations refer to the pixels as stored, not rotated by EXIF, unless their file gives the size
    of the rotated image.

    Args:
        path: path of the image.
        size: width and height in the annotation file; None for a missing one.
        source: name of the record, for messages.

    Raises:
        BrokenSampleError: the file is missing, no image, or of neither size.
    """
    stored = read_image(path, source, upright=False)
    if None in size or stored.size == size:
        return stored
    upright = read_image(path, source)
    if upright.size != size:
        expected = f"{size[0]} × {size[1]} pixels"
        got = f"{stored.width} × {stored.height}"
        raise BrokenSampleError(source, f"{path.name}: expected {expected}, got {got}")
    return upright


def mask_of(segmentation: Any, size: tuple[int, int], source: str) -> np.ndarray:
    """Decode the mask (h, w) bool of a COCO annotation with `decode_segmentation`.

    Raises:
        BrokenSampleError: the annotation is no mask of that size.
        ImportError: there are polygons, and pycocotools is not installed.
    """
    try:
        return decode_segmentation(segmentation, size)
    except ValueError as error:
        raise BrokenSampleError(source, f"segmentation: {error}") from error


def decode_image(data: Any, source: str, field: str) -> Image.Image:
    """Decode an image in a parquet row, bytes or {"bytes", "path"} as in Hugging Face's data sets.

    Raises:
        BrokenSampleError: the field has no bytes, or they are no image.
    """
    if isinstance(data, Mapping):
        data = data.get("bytes")
    if not isinstance(data, bytes):
        got = type(data).__name__
        raise BrokenSampleError(source, f"{field}: expected the bytes of an image, got {got}")
    if _ARE_BLANK.get():
        return Image.new("RGB", (1, 1))
    try:
        return load_image(NamedBytes(data, field))
    except UnreadableImageError as error:
        raise BrokenSampleError(source, str(error)) from error


def field_of(record: Any, name: str, kind: type | tuple[type, ...], source: str) -> Any:
    """Return a field of a record.

    Raises:
        BrokenSampleError: the record is no object, or the field is missing or of another type.
    """
    value = record.get(name) if isinstance(record, Mapping) else None
    # True is an int in Python, but not in JSON.
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise BrokenSampleError(source, f"{name}: expected {kinds}, got {value!r:.80}")
    return value


def by_key(records: Records, name: str) -> dict[Any, list[dict[str, Any]]]:
    """Group the objects of a list by their field `name`, a number or text; skip all others."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for index in range(len(records)):
        one = records[index]
        key = one.get(name) if isinstance(one, dict) else None
        if isinstance(key, int | float | str):
            found.setdefault(key, []).append(one)
    return found
