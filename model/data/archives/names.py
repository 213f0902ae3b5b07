"""Names of archives: paths, URLs, brace names and globs, and the file systems behind URLs."""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_URL = re.compile(r"([A-Za-z][\w+.-]+)://")
_LOCAL = ("file", "local")
# In the URLs of these, "?" begins a query, and "[" an address of IPv6.
_WEB = ("http", "https")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_NOT_FOUND = 404
# More names than any data set has: a slip of the pen, such as a digit too many.
_MAX_NAMES = 10_000_000


def expand(paths: str | Path | Iterable[str | Path]) -> list[str]:
    """List the files that names stand for, in the order of the names.

    A str may have braces as in webdataset, "shard-{000..127}.tar" or "{train,val}/0.tar", several
    of them, and be a glob, whose matches are sorted. It may be a URL of any protocol of fsspec. A
    local file of exactly this name comes first. A Path is a plain name.

    Plain URLs are not looked up, since that would take a request for each.

    Args:
        paths: a name, or several.

    Returns:
        Local paths and URLs; URLs of local files as paths.

    Raises:
        ValueError: a local name or a glob matches nothing or a folder, braces are no list and no
            range, or the package for a protocol is not installed.
        OSError: a URL cannot be searched.
    """
    given = [paths] if isinstance(paths, str | Path) else paths
    return [name for entry in given for name in _names(entry)]


def local_path(name: str | Path) -> Path | None:
    """Return the path of a local file, given as a path or as a URL; None for other URLs."""
    if isinstance(name, Path):
        return name
    protocol = _protocol(name)
    if protocol is None:
        return Path(name)
    return Path(name[len(protocol) + 3 :]) if protocol in _LOCAL else None


def remote_file(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the file's path in it.

    Raises:
        ValueError: the protocol is unknown, or its package is not installed.
        OSError: the file system cannot be reached.
    """
    import fsspec.core

    try:
        return fsspec.core.url_to_fs(url, **_options(url))
    except ImportError as error:
        # The error names the package.
        expected = f"an installed package for {_protocol(url)}://"
        raise ValueError(f"paths: expected {expected}, got {url!r} ({error})") from error
    except ValueError as error:
        raise ValueError(f"paths: expected a URL for fsspec, got {url!r} ({error})") from error
    except Exception as error:
        raise unreachable(url, error) from error


def unreachable(name: str, error: Exception) -> OSError:
    """Return an error that names a file; clients of the web raise nearly anything."""
    if isinstance(error, FileNotFoundError):
        # fsspec raises it for whatever a web server answers.
        cause = error.__cause__
        if cause is None or getattr(cause, "status", None) == _NOT_FOUND:
            return FileNotFoundError(f"cannot read {name}: no such file")
        error = cause
    return OSError(f"cannot read {name}: {type(error).__name__}: {error!s:.200}")


def is_web(name: str) -> bool:
    """Return whether a name is the URL of a web server."""
    return _protocol(name) in _WEB


def _names(entry: str | Path) -> Iterator[str]:
    path = local_path(entry)
    if isinstance(entry, Path) or (path is not None and os.path.exists(path)):
        if not path.is_file():
            raise ValueError(f"paths: expected files, got {str(entry)!r}")
        yield str(path)
        return
    for name in _expand_braces(entry):
        path = local_path(name)
        if path is None:
            yield from _find_urls(name) if _is_glob(name) else [name]
        else:
            yield from _find_files(name, path)


def _find_files(name: str, path: Path) -> list[str]:
    matches = [path]
    if not os.path.exists(path):  # Path.exists raises an error for a name that is too long
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    if not matches or not all(match.is_file() for match in matches):
        raise ValueError(f"paths: expected files, got {name!r}")
    return [str(match) for match in matches]


def _find_urls(url: str) -> list[str]:
    files, pattern = remote_file(url)
    try:
        found = files.glob(pattern, detail=True)
    except Exception as error:
        raise unreachable(url, error) from error
    if not found or any(info.get("type") != "file" for info in found.values()):
        raise ValueError(f"paths: expected files, got {url!r}")
    return [files.unstrip_protocol(name) for name in sorted(found)]


def _protocol(name: str) -> str | None:
    match = _URL.match(name)
    return match and match[1].lower()


def _is_glob(url: str) -> bool:
    if is_web(url):
        return "*" in url.partition("?")[0]
    return glob.has_magic(url)


def _options(url: str) -> dict[str, Any]:
    if not is_web(url):
        return {}
    import aiohttp

    # By default a file may take five minutes in all, too few for a large one.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
    return {"client_kwargs": {"timeout": timeout}}


def _expand_braces(name: str) -> list[str]:
    """Return the names that braces stand for, the last brace running fastest."""
    texts = re.split(r"\{([^{}]*)\}", name)
    if any(brace in text for text in texts for brace in "{}"):
        raise ValueError(f"paths: expected closed braces without inner ones, got {name!r}")
    choices: list[Any] = [[text] for text in texts]
    for place in range(1, len(texts), 2):
        choices[place] = _choices(texts[place], name)
    if math.prod(map(len, choices)) > _MAX_NAMES:
        raise ValueError(f"paths: expected at most {_MAX_NAMES} names, got {name!r}")
    return ["".join(parts) for parts in itertools.product(*choices)]


class _Range:
    """Numbers from first to last as texts of one width; a list of them may not fit into memory."""

    def __init__(self, first: str, last: str):
        start, end = int(first), int(last)
        step = 1 if start <= end else -1
        self._numbers = range(start, end + step, step)
        padded = any(len(text) > 1 and text.startswith("0") for text in (first, last))
        self._width = max(len(first), len(last)) if padded else 0

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[str]:
        return (f"{number:0{self._width}d}" for number in self._numbers)


def _choices(inside: str, name: str) -> list[str] | _Range:
    match = _RANGE.fullmatch(inside)
    if match and max(map(len, match.groups())) < len(str(_MAX_NAMES)) * 2:
        return _Range(*match.groups())
    if match is None and "," in inside and ".." not in inside:
        return inside.split(",")
    expected = "{FIRST..LAST} of numbers or {ONE,OTHER}"
    raise ValueError(f"paths: expected {expected}, got {{{inside}}} in {name!r}")
