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

_PICTURES = ("jpg", "jpeg", "png", "webp")
_TEXTS = ("txt", "json")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass
class _Entry:
    """A key of a shard: where the bytes of each of its members are."""

    shard: Path
    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)  # suffix: offset, bytes
    cut: bool = False

    @property
    def source(self) -> str:
        return f"{self.shard}: {self.key}"

    @property
    def pictures(self) -> list[str]:
        """Suffixes of its picture, or of those among which nothing chooses."""
        plain = [suffix for suffix in self.members if suffix in _PICTURES]
        return plain[:1] or [suffix for suffix in self.members if _is_picture(suffix)]


class Shards(FileDataset):
    """The keys of uncompressed tar archives, in the order of the archives.

    A key ends at the first dot of a name, as in webdataset. Its picture is its first member named
    KEY.jpg, .jpeg, .png or .webp; without any, the only one named KEY.WORD.jpg and so on. Its
    caption is KEY.txt, or "caption" of the object in KEY.json, and empty without either or where
    that is null. Members of other names are ignored, nothing is unpickled or written to disk. Keys
    that have no picture as their download failed, which img2dataset notes in KEY.json, are left
    out. Concepts are cut out of the caption by `split_concepts`.

    An archive is opened for each read and closed again, so that processes share nothing.
    """

    def __init__(self, paths: str | Path | Iterable[str | Path]):
        """Reads the headers of all archives.

        Args:
            paths: Archives; a text may be a pattern such as "train/*.tar", whose matches are
                sorted.

        Raises:
            ValueError: No file matches, a file is no uncompressed tar archive, or no archive has
                members that could be samples.
        """
        self._entries: list[_Entry] = []
        for shard in _find(paths):
            self._entries.extend(_scan(shard))
        if not self._entries:
            raise ValueError("paths: expected archives with pictures or captions, got none")

    def __len__(self) -> int:
        return len(self._entries)

    def _source(self, index: int) -> str:
        return self._entries[index].source

    def _read(self, index: int, source: str) -> Sample:
        entry = self._entries[index]
        if entry.cut:
            raise BrokenSampleError(source, "the archive is cut off or damaged here")
        pictures = entry.pictures
        if len(pictures) != 1:
            reason = f"expected one picture, got {', '.join(pictures)}"
            raise BrokenSampleError(source, reason if pictures else "it has no picture")
        try:
            data = _bytes(entry, *pictures, *_TEXTS)
            image = load_image(NamedBytes(data[pictures[0]], f"its .{pictures[0]}"))
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
            with tarfile.open(fileobj=_Within(stream), mode="r:") as archive:
                entries = _entries(shard, archive, stream)
        except Exception as error:
            # Of damaged headers tarfile raises nearly anything.
            raise ValueError(f"paths: expected tar archives, got {shard} ({error})") from error
    return [entry for entry in entries if not _is_failed(entry)]


class _Within:
    """A file for tarfile, which asks for as many bytes as a header claims.

    Args:
        stream: whose bytes are read, and no more of them asked for than there are.
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
    try:
        for member in archive:
            key, suffix = _split_name(member.name)
            is_known = suffix in _TEXTS or _is_picture(suffix)
            if is_known and member.isreg() and not member.issparse():
                last = entries.setdefault(key, _Entry(shard, key))
                last.members.setdefault(suffix, (member.offset_data, member.size))
            if member.size < 0:
                # The next header would be this one, for ever.
                raise tarfile.ReadError(f"a member of {member.size} bytes")
        # tarfile takes an archive that ends between two members, or is garbage from there on, for
        # a whole one. Then too the last key may lack members.
        stream.seek(archive.offset)
        is_whole = stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except Exception:
        is_whole = False
    if not is_whole:
        last = last or entries.setdefault("", _Entry(shard, "(no key)"))
        last.cut = True
    return list(entries.values())


def _is_failed(entry: _Entry) -> bool:
    """Whether there is no picture because its download failed."""
    if entry.cut or entry.pictures or "json" not in entry.members:
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
    """Splits at the first dot of the file's name: "a.b/c.seg.png" is "a.b/c" and "seg.png"."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, suffix.lower()


def _is_picture(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in _PICTURES


def _bytes(entry: _Entry, *suffixes: str) -> dict[str, bytes]:
    """Members of a key by suffix, those that it has.

    Raises:
        OSError: the archive is not there, or shorter than it was.
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
