"""Atomic writes: a file is written beside its target, forced to the disk, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

# Prefix of files that are still being written; readers skip those that a killed process left.
UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Replace a file in one step.

    A reader sees the old file or the new one, whatever stops the writer. A link at `path` is
    replaced, never followed.

    Args:
        path: file to replace or create.

    Yields:
        The path to write to: an empty file in the same folder with the ending of `path`. It takes
        the name of `path` when the block ends, and is removed if an error ends the block.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    # The length does not depend on `path`, whose name may be as long as the file system allows.
    beside = path.with_name(f"{UNFINISHED}{secrets.token_hex(8)}{path.suffix[:16]}")
    os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        with naming(path):
            yield beside
            sync(beside)
            os.replace(beside, path)
            sync(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def filling(folder: str | Path) -> Iterator[Path]:
    """Write files into a folder, each of them completely or not at all.

    Args:
        folder: target folder, created if missing; its files with other names stay.

    Yields:
        A folder beside the target to write to. When the block ends, its files replace those of the
        same names in `folder`; if an error ends the block, nothing moves.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    folder = Path(folder)
    beside = folder.with_name(f"{UNFINISHED}{secrets.token_hex(8)}")
    with naming(folder):
        beside.mkdir(parents=True)
        try:
            yield beside
            files = sorted(path for path in beside.rglob("*") if path.is_file())
            for path in files:
                sync(path)
            for path in files:
                final = folder / path.relative_to(beside)
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, final)
                sync(final.parent)
            sync(folder.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """Replace a folder as a whole, so that no file of an earlier one stays.

    A killed writer leaves a hidden folder beside it, which the next one removes. Only one process
    at a time may write.

    Args:
        folder: folder to replace or create.

    Yields:
        An empty folder beside it to write to. When the block ends, it takes the name of `folder`;
        if an error ends the block, it is removed and `folder` stays.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    folder = Path(folder).absolute()
    new, old = (folder.with_name(f"{UNFINISHED}{kind}-{folder.name}") for kind in ("new", "old"))
    with naming(folder):
        for leftover in (new, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        new.mkdir(parents=True)
        try:
            yield new
            for path in sorted(new.rglob("*")):
                sync(path)
            sync(new)
            if folder.exists():
                # A folder with files cannot be replaced in one step.
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
            sync(folder.parent)
        finally:
            for leftover in (new, old):
                shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Add the file's name to errors of writing it; that of a full disk, for example, has none.

    Raises:
        OSError: the original error, with `path` as its file name if it has no other; errors of
            safetensors are converted.
    """
    try:
        yield
    except OSError as error:
        # An error without a number would lose its text.
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
    except Exception as error:
        # Not imported here: callers that write no safetensors files need no such package.
        safetensors = sys.modules.get("safetensors")
        if safetensors is None or not isinstance(error, safetensors.SafetensorError):
            raise
        raise OSError(f"{path}: {error}") from error


def write_file(path: str | Path, content: str | bytes) -> None:
    """Write a complete file as `replacing` does.

    Args:
        path: file to replace or create.
        content: bytes of the file, or text, which is encoded in UTF-8.

    Raises:
        OSError: see `replacing`.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with replacing(path) as beside:
        beside.write_bytes(data)


def sync(path: str | Path) -> None:
    """Force a file's content, or a folder's names, to the disk.

    Raises:
        OSError: the path does not exist, or the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
