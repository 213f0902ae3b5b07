"""A lock on a folder of results: two processes never write into one."""

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
    """Another process writes into the folder; the message names the process."""


@contextlib.contextmanager
def locked(folder: str | Path, name: str = "out") -> Iterator[None]:
    """Hold a folder for this process; the lock ends with the block, or with the process.

    A process that was killed leaves files behind, but no lock: the operating system takes it back.

    Args:
        folder: made if need be.
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
    """The holder in words, as far as it has said who it is."""
    try:
        own = json.loads((folder / _HOLDER).read_text(encoding="utf-8"))
        return "process {process} on {host} since {since} ({command})".format(**own)
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
