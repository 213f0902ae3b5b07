"""File names as text: names are bytes, and not every name is UTF-8 or printable."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def utf8_name(path: str | Path) -> str:
    """Decode a name as UTF-8, whatever the locale; other bytes stay as surrogates U+DC80-U+DCFF."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def true_path(path: str | Path) -> str:
    """Return the absolute path without links, as text: the same for all names of a file."""
    with contextlib.suppress(ValueError):  # a NUL byte: reading the file will raise
        path = os.path.realpath(path)
    return utf8_name(path)


def printable_name(path: str | Path) -> str:
    r"""Show a name on one line: bytes that are no UTF-8 as \xff, control characters escaped."""
    return "".join(map(_printable, utf8_name(path)))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
