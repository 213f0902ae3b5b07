"""MagicBrush's test split in its published form: PNG and JSON, in a zip file or unpacked."""

from __future__ import annotations

import posixpath
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

from setokim.data.readers.files import field_of, file_in
from setokim.data.records import json_of
from setokim.data.samples import BrokenSampleError, check_index

_TURNS = "edit_turns.json"
# Published with the file, only to keep crawlers out.
_PASSWORD = b"MagicBrush"
# Max bytes of a file in an archive: more than any PNG of 1024 x 1024 pixels has.
_MAX_BYTES = 1 << 28
_OUTPUT = re.compile(r"(?P<image>.+)-output(?P<turn>\d{1,9})\.\w+")
_DAMAGE = (NotImplementedError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error)


class EditTurns:
    """Records of edit_turns.json with the bytes of their images, in the fields of the parquet.

    Args:
        path: path of edit_turns.json, beside the folder images, or of a zip file of both.

    Raises:
        OSError, ValueError: the file is missing or holds something else.
    """

    def __init__(self, path: Path):
        self._path = path
        self._inside = "" if path.name == _TURNS else posixpath.dirname(_name_in(path) or "")
        found = json_of(self._bytes(_TURNS), f"{path}: {_TURNS}")
        if not isinstance(found, list):
            raise ValueError(f"{path}: expected a list of edits, got {type(found).__name__}")
        self._turns = found

    def __len__(self) -> int:
        return len(self._turns)

    def __getitem__(self, index: int) -> dict[str, Any]:
        check_index(index, len(self))
        source, turn = self.source(index), self._turns[index]
        names = [field_of(turn, name, str, source) for name in ("input", "output")]
        parts = _OUTPUT.fullmatch(names[1])
        if parts is None:
            raise BrokenSampleError(source, f"output: expected ID-outputN.png, got {names[1]!r}")
        folder = f"images/{parts['image']}"
        try:
            before, after = (self._bytes(f"{folder}/{name}") for name in names)
        except (OSError, ValueError) as error:
            raise BrokenSampleError(source, str(error)) from error
        return {
            "img_id": parts["image"],
            "turn_index": int(parts["turn"]),
            "source_img": before,
            "instruction": turn.get("instruction"),
            "target_img": after,
        }

    def source(self, index: int) -> str:
        return f"{self._path}: {_TURNS}[{index}]"

    def beside(self, name: str) -> bytes | None:
        """Read another file of the folder or archive; return None if it does not exist."""
        try:
            return self._bytes(name)
        except FileNotFoundError:
            return None

    def _bytes(self, name: str) -> bytes:
        """Read a file.

        Raises:
            OSError, ValueError: the file is missing or damaged.
        """
        if self._path.name == _TURNS:
            return file_in(self._path.parent, name, str(self._path)).read_bytes()
        inside = posixpath.join(self._inside, name)
        try:
            # Opened for each file, so that processes share nothing.
            with zipfile.ZipFile(self._path) as archive:
                member = archive.getinfo(inside)
                if member.file_size > _MAX_BYTES:
                    reason = f"expected at most {_MAX_BYTES} bytes, got {member.file_size}"
                    raise ValueError(f"{self._path}: {inside}: {reason}")
                with archive.open(member, pwd=_PASSWORD) as file:
                    return file.read(member.file_size)
        except KeyError as error:
            raise FileNotFoundError(f"{self._path}: expected {inside}, got none") from error
        except _DAMAGE as error:
            raise ValueError(f"cannot read {inside} in {self._path}: {error}") from error


def find_turns(root: Path) -> Path | None:
    """Find edit_turns.json in a folder or its folder test, or the first zip file with it."""
    for path in (root / _TURNS, root / "test" / _TURNS):
        if path.is_file():
            return path
    return next((path for path in sorted(root.glob("*.zip")) if _name_in(path)), None)


def _name_in(path: Path) -> str | None:
    """Return the name of edit_turns.json in a zip file; None without it or if it is no zip file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return None
    return next((name for name in names if posixpath.basename(name) == _TURNS), None)
