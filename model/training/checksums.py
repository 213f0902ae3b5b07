"""Checksums of the files in a folder, in the format of `sha256sum -c`.

SHA-256, because processors have instructions for it and every system has a command that checks it;
disks that flip bits alone would not need a cryptographic one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")


def checksum(path: Path) -> str:
    """SHA-256 of a file of any size in 64 hexadecimal digits; a part is in memory at a time.

    Raises:
        OSError: the file cannot be read.
    """
    digest, part = hashlib.sha256(), bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(part):
            digest.update(memoryview(part)[:size])
    return digest.hexdigest()


def format_sums(sums: Mapping[str, str]) -> str:
    """The content of a file of checksums, given by the names of the files."""
    return "".join(f"{found}  {name}\n" for name, found in sums.items())


def read_sums(folder: Path) -> dict[str, str]:
    """Checksums by the names of the files, from a folder that has them.

    Raises:
        OSError: there are none.
        ValueError: a line is no checksum, or a name comes twice.
    """
    # What is no UTF-8 is no checksum either.
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    matches = [_LINE.fullmatch(line) for line in lines]
    for number, match in enumerate(matches, 1):
        if match is None:
            raise ValueError(f"{SUMS}:{number}: expected a checksum and a name")
    sums = {match[2]: match[1] for match in matches if match}
    if len(sums) != len(lines):
        raise ValueError(f"{SUMS}: expected each name once, got {len(lines)} lines")
    return sums
