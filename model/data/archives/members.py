"""Members of a tar archive by keys, and the sample that the members of a key make."""

from __future__ import annotations

import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from setokim.data.archives.streams import SourceError
from setokim.data.file_dataset import read_guarded
from setokim.data.image_processing import NamedBytes, UnreadableImageError, load_image
from setokim.data.records import DOWNLOADED, json_of
from setokim.data.samples import BrokenSampleError, Sample, split_concepts

# Max bytes of a member, or of a header, that is read into memory.
MAX_BYTES = 2**28
_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_TEXTS = ("txt", "json")
_NAMED_IN_MESSAGES = 5


class DamagedArchiveError(ValueError):
    """Error for an archive that ends too early or continues with garbage."""


class LastBytes:
    """Base of files for tarfile that remember their last bytes read.

    Attributes:
        last: result of the last `read`.
    """

    last: bytes = b""


@dataclass
class Entry(ABC):
    """A key of an archive with its members.

    A key ends at the first dot of a name, as in webdataset. Its image is its first member named
    KEY.jpg, .jpeg, .png or .webp; without any, the only one named KEY.WORD.jpg and so on. Its
    caption is KEY.txt, or "caption" of the object in KEY.json; it is empty without either or where
    "caption" is null.

    Attributes:
        archive: name of the archive.
        key: name of the members up to the first dot.
        members: what `_bytes` needs to read each member, by its suffix, in the archive's order.
        damage: reason why the entry is broken as a whole; empty where it is not.
    """

    archive: str
    key: str
    members: dict[str, Any] = field(default_factory=dict, repr=False)
    damage: str = ""

    @property
    def source(self) -> str:
        """Archive and key, for messages."""
        return f"{self.archive}: {self.key}"

    def load(self) -> Sample:
        """Read and decode the sample.

        Raises:
            BrokenSampleError: the sample cannot be read, for whatever reason.
        """
        return read_guarded(self._sample, self.source)

    def is_failed(self) -> bool:
        """Return whether the image is missing because its download by img2dataset failed."""
        if self.damage or self._images or "json" not in self.members:
            return False
        try:
            fields = self._fields(self._bytes("json")["json"])
        except (OSError, BrokenSampleError):
            return False
        name, good = DOWNLOADED
        return isinstance(fields, dict) and fields.get(name, good) != good

    def cut_off(self, error: DamagedArchiveError) -> None:
        """Mark the entry as the last one of a damaged archive; it may lack members."""
        self.damage = f"the archive is truncated or damaged here ({error})"

    @abstractmethod
    def _bytes(self, *suffixes: str) -> dict[str, bytes]:
        """Return the bytes of the members with some of these suffixes.

        Raises:
            OSError: a member cannot be read.
        """

    @property
    def _images(self) -> list[str]:
        """Suffix of its image; several if the choice is ambiguous."""
        plain = [suffix for suffix in self.members if suffix in _IMAGE_SUFFIXES]
        return plain[:1] or [suffix for suffix in self.members if _is_image(suffix)]

    def _sample(self) -> Sample:
        if self.damage:
            raise BrokenSampleError(self.source, self.damage)
        suffixes = self._images
        if len(suffixes) != 1:
            names = ", ".join(suffixes[:_NAMED_IN_MESSAGES])
            more = len(suffixes) - _NAMED_IN_MESSAGES
            reason = f"expected one image, got {names}{f' and {more} more' if more > 0 else ''}"
            raise BrokenSampleError(self.source, reason if suffixes else "it has no image")
        try:
            data = self._bytes(*suffixes, *_TEXTS)
            image = load_image(NamedBytes(data[suffixes[0]], f"its .{suffixes[0]}"))
        except (OSError, UnreadableImageError) as error:
            raise BrokenSampleError(self.source, str(error)) from error
        caption = self._caption(data)
        return Sample(image, caption, split_concepts(caption), None, self.source)

    def _caption(self, data: dict[str, bytes]) -> str:
        if "txt" in data:
            try:
                return data["txt"].decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                reason = f"cannot read its caption: {error}"
                raise BrokenSampleError(self.source, reason) from error
        if "json" not in data:
            return ""
        fields = self._fields(data["json"])
        missing = BrokenSampleError(self.source, 'its .json has no text under "caption"')
        if not isinstance(fields, dict) or "caption" not in fields:
            raise missing
        if fields["caption"] is None:
            return ""
        if not isinstance(fields["caption"], str):
            raise missing
        return fields["caption"].strip()

    def _fields(self, data: bytes) -> Any:
        try:
            return json_of(data, "its .json")
        except ValueError as error:
            raise BrokenSampleError(self.source, f"cannot read its caption: {error}") from error


def open_tar(name: str, file: Any) -> tarfile.TarFile:
    """Open an archive that is not compressed; reads its first header.

    Args:
        name: name of the archive, for messages.
        file: a `LastBytes` with `read`, `seek` and `tell`.

    Raises:
        ValueError: the file is no tar archive.
    """
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except SourceError:
        raise
    except Exception as error:
        # Damaged headers make tarfile raise nearly anything.
        raise ValueError(f"paths: expected tar archives, got {name} ({error})") from error


def members_of_samples(
    archive: tarfile.TarFile, file: LastBytes
) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield key, suffix and header of each member that a sample may need.

    Args:
        archive: archive opened by `open_tar`.
        file: file of the archive.

    Raises:
        DamagedArchiveError: the archive ends too early. The members before are whole, but for the
            last one yielded.
        SourceError: reading fails.
    """
    while (member := _next(archive)) is not None:
        key, suffix = _split_name(member.name)
        is_known = suffix in _TEXTS or _is_image(suffix)
        if is_known and member.isreg() and not member.issparse():
            yield key, suffix, member
        if member.size < 0:
            # The next header would be this one again, in an endless loop.
            raise DamagedArchiveError(f"ReadError: a member of {member.size} bytes")
    # tarfile accepts an archive that ends between two members, or continues with garbage, as
    # complete. Then too the last key may lack members.
    if file.last != bytes(tarfile.BLOCKSIZE):
        raise DamagedArchiveError("no end of the archive")


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        member = archive.next()
    except SourceError:
        raise
    except Exception as error:
        # Damaged headers make tarfile raise nearly anything.
        raise damaged(error) from error
    archive.members.clear()  # headers that nobody asks for again
    return member


def damaged(error: Exception) -> DamagedArchiveError:
    """Return the error of an archive whose reading raised another one."""
    return DamagedArchiveError(f"{type(error).__name__}: {error!s:.200}")


def too_large(suffix: str, size: int) -> OSError:
    """Return the error of a member that is not read into memory."""
    return OSError(f"its .{suffix}: expected at most {MAX_BYTES} bytes, got {size}")


def _split_name(name: str) -> tuple[str, str]:
    """Split at the first dot of the file's name: "a.b/c.seg.png" is "a.b/c" and "seg.png"."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, suffix.lower()


def _is_image(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in _IMAGE_SUFFIXES
