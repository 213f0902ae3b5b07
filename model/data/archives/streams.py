"""Sequential reading of local and remote files, decompressed by their first bytes."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from setok_kernels.extras import from_extra
from setokim.data.archives.names import is_web, local_path, remote_file, unreachable

# Bytes that a read of a buffer asks for.
CHUNK = 2**20
# Bytes that a request to an object store asks for and keeps in memory. A web server sends the whole
# file for one request, since not every one can send parts.
_BLOCK = 2**24


class SourceError(OSError):
    """Error for a file that fails while it is read, such as a connection that is lost.

    It is no property of the file, so a later attempt may succeed.
    """


@contextlib.contextmanager
def open_stream(name: str | Path) -> Iterator[BinaryIO]:
    """Open a file for one reading from front to back.

    Files in gzip, bzip2, xz and zstd are decompressed; their first bytes decide, not their names.

    Args:
        name: path or URL of one file.

    Yields:
        A binary stream without seeking, of bounded memory. Its `read1` returns all bytes before
        a damage of the compressed data, and then raises the error of the decompressor.

    Raises:
        FileNotFoundError, OSError: the file does not exist or cannot be opened.
        SourceError: reading fails, or a remote file is shorter than its server said.
        ValueError: there is no package for the URL's protocol.
        MissingExtraError: the file is in zstd and the package for it is not installed.
    """
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(io.BufferedReader(_Source(str(name), *_open(name)), CHUNK))
        opener = _OPENERS.get(compression(source.peek(len(_LONGEST))))
        if opener is None:
            yield source
            return
        yield stack.enter_context(opener(source))


def compression(start: bytes) -> str | None:
    """Return the name of the compression that a file's first bytes show; None for none."""
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


class _Source(io.RawIOBase):
    """The bytes of a file as stored, with errors that name it.

    Args:
        name: path or URL of the file, for messages.
        file: file, opened.
        size: number of its bytes; None where it is not known.
    """

    def __init__(self, name: str, file: Any, size: int | None):
        self._name, self._file, self._size = name, file, size
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0
        # Servers send few bytes at a time.
        while filled < len(buffer) and (data := self._next(len(buffer) - filled)):
            buffer[filled : filled + len(data)] = data
            filled += len(data)
        self._read += filled
        if filled < len(buffer) and self._size is not None and self._read < self._size:
            found = f"expected {self._size} bytes, got {self._read}"
            raise SourceError(f"cannot read {self._name}: {found}")
        return filled

    def _next(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:
            raise SourceError(str(unreachable(self._name, error))) from error

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._file.close()


def _open(name: str | Path) -> tuple[Any, int | None]:
    """Return a file and its size; None for a local file, or where the server does not say it."""
    path = local_path(name)
    if path is not None:
        return path.open("rb", buffering=0), None
    url = str(name)
    files, inside = remote_file(url)
    try:
        file = files.open(inside, "rb", block_size=0 if is_web(url) else _BLOCK)
    except Exception as error:
        raise unreachable(url, error) from error
    return file, getattr(file, "size", None)


def _open_zstd(source: io.BufferedReader) -> Any:
    with from_extra("tokenize"):
        import zstandard
    return zstandard.ZstdDecompressor().stream_reader(source, CHUNK, read_across_frames=True)


_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LONGEST = max(_MAGIC, key=len)
# Pythons are built without bz2 or lzma where their libraries are missing.
_OPENERS: dict[str | None, Callable[[Any], Any]] = {
    "gzip": lambda source: gzip.GzipFile(fileobj=source),
    "bzip2": lambda source: importlib.import_module("bz2").BZ2File(source),
    "xz": lambda source: importlib.import_module("lzma").LZMAFile(source),
    "zstd": _open_zstd,
}


@contextlib.contextmanager
def open_seekable(name: str | Path) -> Iterator[BinaryIO]:
    """Open a file as stored, for reading at any position.

    Args:
        name: path or URL of one file.

    Raises:
        FileNotFoundError, OSError: the file does not exist or cannot be opened.
        ValueError: there is no package for the URL's protocol.
    """
    path = local_path(name)
    if path is not None:
        with path.open("rb") as file:
            yield file
        return
    files, inside = remote_file(str(name))
    try:
        file = files.open(inside, "rb")
    except Exception as error:
        raise unreachable(str(name), error) from error
    with file:
        yield file
