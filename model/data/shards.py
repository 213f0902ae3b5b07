"""Tar archives in the layout of webdataset: members KEY.jpg and KEY.txt or KEY.json."""

from __future__ import annotations

import glob
import io
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from setokim.data.file_dataset import FileDataset
from setokim.data.image_processing import NamedBytes, UnreadableImageError, load_image
from setokim.data.records import DOWNLOADED, json_of
from setokim.data.samples import BrokenSampleError, Sample, split_concepts

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_TEXTS = ("txt", "json")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass
class _Entry:
    """A key of a shard, with the positions of its members' bytes."""

    shard: Path
    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)  # suffix: offset, bytes
    damage: str = ""  # why the archive ends here too early; empty where it does not

    @property
    def source(self) -> str:
        return f"{self.shard}: {self.key}"

    @property
    def images(self) -> list[str]:
        """Suffix of its image; several if the choice is ambiguous."""
        plain = [suffix for suffix in self.members if suffix in _IMAGE_SUFFIXES]
        return plain[:1] or [suffix for suffix in self.members if _is_image(suffix)]


class Shards(FileDataset):
    """The keys of uncompressed tar archives, in the order of the archives.

    A key ends at the first dot of a name, as in webdataset. Its image is its first member named
    KEY.jpg, .jpeg, .png or .webp; without any, the only one named KEY.WORD.jpg and so on. Its
    caption is KEY.txt, or "caption" of the object in KEY.json; it is empty without either or where
    "caption" is null. Members of other names are ignored, nothing is unpickled or written to disk.
    Keys without an image whose download failed by KEY.json, as img2dataset writes it, are left
    out. `split_concepts` splits the caption into concepts.

    Each read opens and closes its archive, so that processes share nothing.
    """

    def __init__(self, paths: str | Path | Iterable[str | Path]):
        """Read the headers of all archives.

        Args:
            paths: archives; a str may be a pattern such as "train/*.tar", whose matches are
                sorted.

        Raises:
            ValueError: no file matches, a file is no uncompressed tar archive, or no archive has
                members that could be samples.
        """
        self._entries: list[_Entry] = []
        for shard in _find(paths):
            self._entries.extend(_scan(shard))
        if not self._entries:
            raise ValueError("paths: expected archives with images or captions, got none")

    def __len__(self) -> int:
        return len(self._entries)

    def _source(self, index: int) -> str:
        return self._entries[index].source

    def _read(self, index: int, source: str) -> Sample:
        entry = self._entries[index]
        if entry.damage:
            reason = f"the archive is truncated or damaged here ({entry.damage})"
            raise BrokenSampleError(source, reason)
        suffixes = entry.images
        if len(suffixes) != 1:
            reason = f"expected one image, got {', '.join(suffixes)}"
            raise BrokenSampleError(source, reason if suffixes else "it has no image")
        try:
            data = _bytes(entry, *suffixes, *_TEXTS)
            image = load_image(NamedBytes(data[suffixes[0]], f"its .{suffixes[0]}"))
        except (OSError, UnreadableImageError) as error:
            raise BrokenSampleError(source, str(error)) from error
        caption = _caption(entry, data)
        return Sample(image, caption, split_concepts(caption), None, source)


def _find(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    found: list[Path] = []
    for entry in [paths] if isinstance(paths, str | Path) else paths:
        matches = [Path(entry)]
        if isinstance(entry, str) and not matches[0].exists():
            matches = [Path(match) for match in sorted(glob.glob(entry, recursive=True))]
        if not matches or not all(match.is_file() for match in matches):
            raise ValueError(f"paths: expected files, got {str(entry)!r}")
        found.extend(matches)
    return found


def _scan(shard: Path) -> list[_Entry]:
    with shard.open("rb") as stream:
        _check_plain(shard, stream)
        try:
            with tarfile.open(fileobj=_BoundedReader(stream), mode="r:") as archive:
                entries = _entries(shard, archive, stream)
        except Exception as error:
            # Damaged headers make tarfile raise nearly anything.
            raise ValueError(f"paths: expected tar archives, got {shard} ({error})") from error
    return [entry for entry in entries if not _is_failed(entry)]


class _BoundedReader:
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
        return self._stream.read(min(size, max(self._size - self.tell(), 0)))


def _entries(shard: Path, archive: tarfile.TarFile, stream: io.BufferedReader) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    last: _Entry | None = None
    damage = ""
    try:
        for member in archive:
            key, suffix = _split_name(member.name)
            is_known = suffix in _TEXTS or _is_image(suffix)
            if is_known and member.isreg() and not member.issparse():
                last = entries.setdefault(key, _Entry(shard, key))
                last.members.setdefault(suffix, (member.offset_data, member.size))
            if member.size < 0:
                # The next header would be this one again, in an endless loop.
                raise tarfile.ReadError(f"a member of {member.size} bytes")
        # tarfile accepts an archive that ends between two members, or continues with garbage, as
        # complete. Then too the last key may lack members.
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            damage = "no end of the archive"
    except Exception as error:
        # Damaged headers make tarfile raise nearly anything. The samples before them are whole.
        damage = f"{type(error).__name__}: {error!s:.200}"
    if damage:
        last = last or entries.setdefault("", _Entry(shard, "(no key)"))
        last.damage = damage
    return list(entries.values())


def _is_failed(entry: _Entry) -> bool:
    """Return whether the image is missing because its download failed."""
    if entry.damage or entry.images or "json" not in entry.members:
        return False
    try:
        fields = _fields(entry, _bytes(entry, "json")["json"])
    except (OSError, BrokenSampleError):
        return False
    name, good = DOWNLOADED
    return isinstance(fields, dict) and fields.get(name, good) != good


def _check_plain(shard: Path, stream: io.BufferedReader) -> None:
    start = stream.read(8)
    stream.seek(0)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(f"paths: expected uncompressed tar archives, got {name} in {shard}")


def _split_name(name: str) -> tuple[str, str]:
    """Split at the first dot of the file's name: "a.b/c.seg.png" is "a.b/c" and "seg.png"."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, suffix.lower()


def _is_image(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in _IMAGE_SUFFIXES


def _bytes(entry: _Entry, *suffixes: str) -> dict[str, bytes]:
    """Read the members of a key with some of these suffixes.

    Raises:
        OSError: the archive is missing, or shorter than before.
    """
    found = {}
    with entry.shard.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        for suffix in entry.members.keys() & set(suffixes):
            start, length = entry.members[suffix]
            if start + length > size:
                raise OSError(f"its .{suffix}: expected {start + length} bytes, got {size}")
            stream.seek(start)
            found[suffix] = stream.read(length)
    return found


def _fields(entry: _Entry, data: bytes) -> Any:
    try:
        return json_of(data, "its .json")
    except ValueError as error:
        raise BrokenSampleError(entry.source, f"cannot read its caption: {error}") from error


def _caption(entry: _Entry, data: dict[str, bytes]) -> str:
    if "txt" in data:
        try:
            return data["txt"].decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise BrokenSampleError(entry.source, f"cannot read its caption: {error}") from error
    if "json" not in data:
        return ""
    fields = _fields(entry, data["json"])
    missing = BrokenSampleError(entry.source, 'its .json has no text under "caption"')
    if not isinstance(fields, dict) or "caption" not in fields:
        raise missing
    if fields["caption"] is None:
        return ""
    if not isinstance(fields["caption"], str):
        raise missing
    return fields["caption"].strip()
