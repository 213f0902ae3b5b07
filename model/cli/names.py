"""Names of result files: one per image, no longer than the file system allows."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from setokim.utils.file_names import true_path

# Before the ending, so that results never overwrite an image and are recognised as results.
RESULT_MARK = ".clusters"
IMAGE_ENDINGS = (".png", ".gif", ".webp")
_ENDINGS = (".json", *IMAGE_ENDINGS)
_LONGEST_NAME = 255  # bytes, on nearly every file system


def result_names(files: Sequence[Path], out: Path | None = None) -> list[str]:
    """Give each image the stem of its results.

    That is the stem of its file. Equal stems are numbered from -2 on; a stem that is too long is
    cut and ends in a checksum of the whole. Names that differ in case only count as equal, as they
    are on some file systems.

    Args:
        files: image files, each once.
        out: folder of the results. An earlier result there is replaced if its JSON names the same
            image, else its name is taken.

    Returns:
        A stem per image, in time linear in the images and the results with equal stems.
    """
    earlier = _Earlier(out)
    room = _longest_name(out) - len(RESULT_MARK) - max(map(len, _ENDINGS))
    taken: set[str] = set()
    # Of each stem: the next number to try, and the images of the results passed over so far.
    numbers: dict[str, count] = defaultdict(lambda: count(1))
    passed: dict[tuple[str, str], str] = {}
    names = []
    for file in files:
        stem, image = file.stem, true_path(file)
        name = passed.pop((_folded(stem), image), None)
        while name is None or _folded(name) in taken:
            number = next(numbers[_folded(stem)])
            name = _fitted(stem, "" if number == 1 else f"-{number}", room)
            owner = earlier.owner(name)
            if owner not in (None, image):
                passed[_folded(stem), owner] = name
                name = None
        taken.add(_folded(name))
        names.append(name)
    return names


class _Earlier:
    """Results of earlier runs.

    Args:
        out: folder of the results; None or an absent folder has none.
    """

    def __init__(self, out: Path | None):
        self._out = out
        there = os.listdir(out) if out is not None and out.is_dir() else []
        self._files = {_folded(name): name for name in there}

    def owner(self, name: str) -> str | None:
        """Return the image of the results of a stem; "" if unknown, None without results."""
        there = [self._files.get(_folded(f"{name}{RESULT_MARK}{end}")) for end in _ENDINGS]
        if not any(there):
            return None
        record = self._out / (there[0] or "")
        try:
            # A FIFO would block.
            text = record.read_text(encoding="utf-8") if record.is_file() else "{}"
            return str(json.loads(text).get("source", ""))
        except (OSError, ValueError, AttributeError, RecursionError):
            return ""


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _longest_name(out: Path | None) -> int:
    try:
        return os.pathconf(out, "PC_NAME_MAX")
    except (AttributeError, OSError, TypeError, ValueError):
        return _LONGEST_NAME


def _fitted(stem: str, number: str, room: int) -> str:
    if len(os.fsencode(stem + number)) <= room:
        return stem + number
    tail = f"~{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}{number}"
    kept = stem[:room]
    while kept and len(os.fsencode(kept + tail)) > room:
        kept = kept[:-1]
    return kept + tail
