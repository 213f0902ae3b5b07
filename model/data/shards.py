"""Tar archives in the layout of webdataset: members KEY.jpg and KEY.txt or KEY.json."""

from __future__ import annotations

import glob
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from setokim.data.samples import BrokenSampleError, Sample, check_index, split_concepts
from setokim.images import NamedBytes, UnreadableImageError, load_image

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


class Shards:
    """The keys of uncompressed tar archives, in the order of the archives.

    The picture of a key is its first member named KEY.jpg, .jpeg, .png or .webp. Its caption is
    KEY.txt, or "caption" of the object in KEY.json, and empty without either. Members of other
    names are ignored, nothing is unpickled or written to disk. Concepts are cut out of the caption
    by `split_concepts`.

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

    def __getitem__(self, index: int) -> Sample:
        check_index(index, len(self))
        entry = self._entries[index]
        if entry.cut:
            raise BrokenSampleError(entry.source, "the archive is cut off here")
        picture = next((s for s in entry.members if s in _PICTURES), None)
        if picture is None:
            raise BrokenSampleError(entry.source, "it has no picture")
        try:
            with entry.shard.open("rb") as stream:
                data = {suffix: _read(stream, *at) for suffix, at in entry.members.items()}
            image = load_image(NamedBytes(data[picture], f"its .{picture}"))
        except (OSError, UnreadableImageError) as error:
            raise BrokenSampleError(entry.source, str(error)) from error
        caption = _caption(entry, data)
        return Sample(image, caption, split_concepts(caption), None, entry.source)


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
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                return _entries(shard, archive, stream)
        except tarfile.TarError as error:
            raise ValueError(f"paths: expected tar archives, got {shard} ({error})") from error


def _entries(shard: Path, archive: tarfile.TarFile, stream: io.BufferedReader) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    last: _Entry | None = None
    try:
        for member in archive:
            key, suffix = _split_name(member.name)
            if not member.isreg() or member.issparse() or suffix not in _PICTURES + _TEXTS:
                continue
            last = entries.setdefault(key, _Entry(shard, key))
            last.members.setdefault(suffix, (member.offset_data, member.size))
        # tarfile takes an archive that ends between two members, or is garbage from there on, for
        # a whole one. Then too the last key may lack members.
        stream.seek(archive.offset)
        is_whole = stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except tarfile.ReadError:
        is_whole = False
    if not is_whole:
        last = last or entries.setdefault("", _Entry(shard, "(no key)"))
        last.cut = True
    return list(entries.values())


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


def _read(stream: io.BufferedReader, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)


def _caption(entry: _Entry, data: dict[str, bytes]) -> str:
    try:
        if "txt" in data:
            return data["txt"].decode("utf-8").strip()
        if "json" not in data:
            return ""
        fields = json.loads(data["json"])
    except ValueError as error:
        # UnicodeDecodeError and JSONDecodeError are both of this kind.
        raise BrokenSampleError(entry.source, f"cannot read its caption: {error}") from error
    caption = fields.get("caption") if isinstance(fields, dict) else None
    if not isinstance(caption, str):
        raise BrokenSampleError(entry.source, 'its .json has no text under "caption"')
    return caption.strip()
