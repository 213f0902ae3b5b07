"""Random access to the samples of tar archives in the layout of webdataset."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from setokim.data.archives.copies import local_copy
from setokim.data.archives.members import (
    MAX_BYTES,
    DamagedArchiveError,
    Entry,
    LastBytes,
    members_of_samples,
    open_tar,
    too_large,
)
from setokim.data.archives.names import expand
from setokim.data.file_dataset import FileDataset
from setokim.data.samples import Sample


class Shards(FileDataset):
    """The keys of tar archives, in the order of the archives.

    `Entry` says which members make a sample. Members of other names are ignored, nothing is
    unpickled or written to disk, except copies of archives that are remote or compressed
    (`local_copy`). Keys without an image whose download failed by KEY.json, as img2dataset writes
    it, are left out. `split_concepts` splits the caption into concepts.

    Each read opens and closes its archive, so that processes share nothing.
    """

    def __init__(self, paths: str | Path | Iterable[str | Path], cache: str | Path | None = None):
        """Read the headers of all archives; fetch those that are remote or compressed.

        Args:
            paths: archives by their names, as in `archives.expand`: paths, URLs, brace names
                such as "train-{000..127}.tar", and globs, whose matches are sorted.
            cache: folder for copies, as in `archives.local_copy`.

        Raises:
            ValueError: no file matches, a file is no tar archive, or no archive has members that
                could be samples.
            OSError: an archive cannot be fetched, or the cache cannot be written.
        """
        self._entries: list[_StoredEntry] = []
        for name in expand(paths):
            self._entries.extend(_scan(name, local_copy(name, cache)))
        if not self._entries:
            raise ValueError("paths: expected archives with images or captions, got none")

    def __len__(self) -> int:
        return len(self._entries)

    def _source(self, index: int) -> str:
        return self._entries[index].source

    def _read(self, index: int, source: str) -> Sample:
        return self._entries[index].load()


@dataclass
class _StoredEntry(Entry):
    """A key of a local archive; its members are offsets and numbers of bytes.

    Attributes:
        path: the archive's local copy.
    """

    path: Path = Path()

    def _bytes(self, *suffixes: str) -> dict[str, bytes]:
        found = {}
        with self.path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            for suffix in self.members.keys() & set(suffixes):
                start, length = self.members[suffix]
                if length > MAX_BYTES:
                    raise too_large(suffix, length)
                if start + length > size:
                    raise OSError(f"its .{suffix}: expected {start + length} bytes, got {size}")
                stream.seek(start)
                found[suffix] = stream.read(length)
        return found


def _scan(name: str, path: Path) -> list[_StoredEntry]:
    with path.open("rb") as stream:
        file = _BoundedReader(stream)
        with open_tar(name, file) as archive:
            entries = _entries(name, path, archive, file)
    return [entry for entry in entries if not entry.is_failed()]


class _BoundedReader(LastBytes):
    """File for tarfile that limits reads to the file's size, whatever length a header claims.

    Args:
        stream: file to read.
    """

    def __init__(self, stream: io.BufferedReader):
        self._stream = stream
        self._size = os.fstat(stream.fileno()).st_size
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if size < 0:
            raise tarfile.ReadError(f"a member of {size} bytes")
        self.last = self._stream.read(min(size, max(self._size - self.tell(), 0)))
        return self.last


def _entries(
    name: str, path: Path, archive: tarfile.TarFile, file: _BoundedReader
) -> list[_StoredEntry]:
    entries: dict[str, _StoredEntry] = {}
    last: _StoredEntry | None = None
    try:
        for key, suffix, member in members_of_samples(archive, file):
            last = entries.setdefault(key, _StoredEntry(name, key, path=path))
            last.members.setdefault(suffix, (member.offset_data, member.size))
    except DamagedArchiveError as error:
        last = last or entries.setdefault("", _StoredEntry(name, "(no key)", path=path))
        last.cut_off(error)
    return list(entries.values())
