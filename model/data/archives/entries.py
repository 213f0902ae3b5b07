"""Entries of a tar archive that is read once, from front to back."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from setokim.data.archives.members import (
    MAX_BYTES,
    DamagedArchiveError,
    Entry,
    LastBytes,
    damaged,
    members_of_samples,
    open_tar,
    too_large,
)
from setokim.data.archives.streams import CHUNK, SourceError, open_stream


@dataclass
class ArchiveEntry(Entry):
    """A key of an archive with the bytes of its members; threads may load several at a time.

    Attributes:
        held: number of bytes of all members in memory.
    """

    held: int = 0

    def _bytes(self, *suffixes: str) -> dict[str, bytes]:
        found = {name: self.members[name] for name in suffixes if name in self.members}
        for suffix, data in found.items():
            if isinstance(data, int):  # bytes up to the end of a member that was not read
                raise too_large(suffix, data)
        return found

    def add(self, suffix: str, size: int, file: _Forward) -> None:
        """Read a member; of members with the same suffix, the first counts.

        Args:
            suffix: suffix of the member's name.
            size: bytes of the member.
            file: file at the member's first byte.

        Raises:
            DamagedArchiveError: the file ends before the member.
        """
        if suffix in self.members or size < 0:
            return
        # Names such as img.0001.jpg make the whole archive one key, so that all members count.
        self.members[suffix] = self.held + size
        if self.held + size <= MAX_BYTES:
            self.members[suffix] = file.whole(size)
            self.held += size


def read_entries(name: str | Path) -> Iterator[ArchiveEntry]:
    """Yield the keys of one archive in its order, while it is read.

    Members of a key are consecutive. A key that occurs again later is an entry of its own, and
    broken. Keys whose download failed by KEY.json, as img2dataset writes it, are left out. An
    archive that is truncated or damaged gives the entries before the damage and a last one that
    is broken.

    Args:
        name: path or URL of a tar archive, plain or in gzip, bzip2, xz or zstd.

    Raises:
        OSError: the archive cannot be opened; `SourceError` if reading fails.
        ValueError: the file is no tar archive, or there is no package for the URL's protocol.
        MissingExtraError: the archive is in zstd and the package for it is not installed.
    """
    name = str(name)
    with open_stream(name) as stream:
        file = _Forward(stream)
        with open_tar(name, file) as archive:
            for entry in _entries(name, archive, file):
                if not entry.is_failed():
                    yield entry


def _entries(name: str, archive: tarfile.TarFile, file: _Forward) -> Iterator[ArchiveEntry]:
    entry: ArchiveEntry | None = None
    seen = set()
    try:
        for key, suffix, member in members_of_samples(archive, file):
            if entry is None or key != entry.key:
                if entry is not None:
                    yield entry
                again = "its key stands at two places of the archive" if key in seen else ""
                entry = ArchiveEntry(name, key, damage=again)
                seen.add(key)
            entry.add(suffix, member.size, file)
    except DamagedArchiveError as error:
        entry = entry or ArchiveEntry(name, "(no key)")
        entry.cut_off(error)
    if entry is not None:
        yield entry


class _Forward(LastBytes):
    """File for tarfile over a stream that cannot seek.

    Args:
        stream: stream at its beginning.
    """

    def __init__(self, stream: BinaryIO):
        self._stream: Any = stream
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.ReadError(f"a member of {position - self._position} bytes")
        while position > self._position and self._take(position - self._position):
            pass

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        parts = io.BytesIO()
        while parts.tell() < size and (data := self._take(size - parts.tell())):
            parts.write(data)
        self.last = parts.getvalue()
        return self.last

    def whole(self, size: int) -> bytes:
        """Read exactly `size` bytes.

        Raises:
            DamagedArchiveError: the stream ends before, or its compressed data are damaged.
        """
        try:
            data = self.read(size)
        except SourceError:
            raise
        except Exception as error:
            raise damaged(error) from error
        if len(data) < size:
            raise damaged(tarfile.ReadError("unexpected end of data"))
        return data

    def _take(self, size: int) -> bytes:
        data = self._stream.read1(min(size, CHUNK))
        self._position += len(data)
        return data
