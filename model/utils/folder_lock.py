"""Lock on a folder of results, so that two processes never write into it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from setokim.utils.files import write_file

_LOCK = ".lock"
_HOLDER = ".lock-holder.json"


class FolderInUseError(ValueError):
    """Error for a folder that another process writes into; the message names the process."""


@contextlib.contextmanager
def locked(folder: str | Path, name: str = "out") -> Iterator[None]:
    """Lock a folder for this process; the lock ends with the block or with the process.

    A killed process leaves files behind but no lock, which the operating system releases.

    Args:
        folder: folder to lock, created if missing.
        name: argument that named the folder, for the message.

    Raises:
        FolderInUseError: another process, or another block of this one, holds the folder.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise FolderInUseError(
            f"{name}: expected a folder that no process writes into, got {folder}, held by "
            f"{_holder(folder)}"
        ) from error
    try:
        write_file(folder / _HOLDER, json.dumps(_own()) + "\n")
        yield
    finally:
        (folder / _HOLDER).unlink(missing_ok=True)
        lock.release()


def _own() -> dict[str, str | int]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(sys.argv),
    }


def _holder(folder: Path) -> str:
    """Describe the process that holds the folder, as far as its file can be read."""
    try:
        own = json.loads((folder / _HOLDER).read_text(encoding="utf-8"))
        return "process {process} on {host} since {since} ({command})".format(**own)
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
