"""What readers of published data sets share: files of a split, pictures, fields of records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from setokim.data.samples import BrokenSampleError
from setokim.images import NamedBytes, UnreadableImageError, load_image


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


def picture_of(path: Path, source: str) -> Image.Image:
    """A picture in a file, as 8-bit RGB.

    Args:
        path: of the file.
        source: of the record that names it.

    Raises:
        BrokenSampleError: it is not there, or no picture.
    """
    try:
        return load_image(path)
    except UnreadableImageError as error:
        raise BrokenSampleError(source, str(error)) from error


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
