"""Local copies of files for random access: remote ones are fetched, compressed ones unpacked."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from setokim.data.archives.names import local_path, remote_file, unreachable
from setokim.data.archives.streams import CHUNK, SourceError, compression, open_stream
from setokim.utils.files import UNFINISHED, replacing

_LOCK = ".lock"
# Fields of fsspec's file systems that change with a file, in lower case.
_CHANGING = frozenset(
    {"blob_id", "content-md5", "created", "digest", "etag", "generation", "last-modified"}
    | {"last_modified", "lastmodified", "md5hash", "mtime", "size", "updated"}
)


def local_copy(name: str | Path, cache: str | Path | None = None, suffix: str = ".tar") -> Path:
    """Return a local, uncompressed file with the content of an archive or of lines of text.

    Local files that are not compressed are used in place. Others are copied into a cache, whole or
    not at all; of several processes, one copies and the others wait. A source whose size, ETag or
    time of change differs is copied again. Data after a damage of compressed data are left out, as
    from a truncated archive.

    Args:
        name: path or URL of an archive.
        cache: folder of the copies; None for the environment variable SETOK_CACHE or, without it,
            `setok/shards` in XDG_CACHE_HOME or ~/.cache.
        suffix: suffix of the copy's name.

    Raises:
        OSError: the archive cannot be opened or read, or the cache cannot be written.
        ValueError: the compressed data are damaged from the start, or there is no package for the
            URL's protocol.
        MissingExtraError: the archive is in zstd and the package for it is not installed.
    """
    path = local_path(name)
    if path is not None and not _is_compressed(path):
        return path
    version = json.dumps(_version(name), default=str)
    folder = _folder(cache) / hashlib.sha256(version.encode()).hexdigest()[:32]
    stem = PurePosixPath(str(name).partition("?")[0]).name.partition(".")[0]
    copy = folder / f"{stem}{suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / _LOCK):
        if not copy.exists():
            for leftover in folder.glob(f"{UNFINISHED}*"):  # of a process that was killed
                leftover.unlink()
            _copy(name, copy)
    return copy


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return compression(file.read(8)) is not None


def _version(name: str | Path) -> list:
    path = local_path(name)
    if path is not None:
        found = path.stat()
        return [str(path.absolute()), found.st_size, found.st_mtime_ns]
    url = str(name)
    files, inside = remote_file(url)
    try:
        info = files.info(inside)
    except Exception as error:
        raise unreachable(url, error) from error
    return [url, sorted((k, str(v)) for k, v in info.items() if k.lower() in _CHANGING)]


def _folder(cache: str | Path | None) -> Path:
    if cache is None:
        cache = os.environ.get("SETOK_CACHE")
    if cache:
        return Path(cache)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "setok" / "shards"


def _copy(name: str | Path, copy: Path) -> None:
    with open_stream(name) as stream, replacing(copy) as beside, beside.open("wb") as file:
        while data := _next(stream, name, first=file.tell() == 0):
            file.write(data)


def _next(stream: Any, name: str | Path, first: bool) -> bytes:
    try:
        return stream.read1(CHUNK)
    except SourceError:
        raise
    except Exception as error:
        if first:
            raise ValueError(f"paths: expected tar archives, got {name} ({error})") from error
        # The compressed data are damaged, and the copy ends here as a truncated archive does: its
        # readers report the sample that is cut off.
        return b""
