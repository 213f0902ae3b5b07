"""SHA-256 checksums of the files in a folder, in the format of `sha256sum -c`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

# SHA-256, as processors have instructions for it and every system has a command that checks it.
SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, reading 1 MiB at a time.

    Raises:
        OSError: the file cannot be read.
    """
    digest, part = hashlib.sha256(), bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(part):
            digest.update(memoryview(part)[:size])
    return digest.hexdigest()


def format_sums(sums: Mapping[str, str]) -> str:
    """Return the content of a checksum file from checksums by file name."""
    return "".join(f"{found}  {name}\n" for name, found in sums.items())


def read_sums(folder: Path) -> dict[str, str]:
    """Return the checksums of a folder by file name.

    Raises:
        OSError: the checksum file cannot be read.
        ValueError: a line has no checksum, or a name occurs twice.
    """
    # A line that is not UTF-8 becomes one without checksum.
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    matches = [_LINE.fullmatch(line) for line in lines]
    for number, match in enumerate(matches, 1):
        if match is None:
            raise ValueError(f"{SUMS}:{number}: expected a checksum and a name")
    sums = {match[2]: match[1] for match in matches if match}
    if len(sums) != len(lines):
        raise ValueError(f"{SUMS}: expected each name once, got {len(lines)} lines")
    return sums
