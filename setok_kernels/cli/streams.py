"""Standard output and error that take any text and say so when they are closed."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def writable_streams() -> Iterator[None]:
    """Let the standard streams take what the locale cannot encode, and stand in for closed ones.

    Writing to a closed standard output raises OSError; what goes to a closed standard error is
    lost.
    """
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        if sys.stdout is None:
            _occupy(1)
            sys.stdout = _ClosedOutput()
        if sys.stderr is None:
            _occupy(2)
            sys.stderr = stack.enter_context(open(os.devnull, "w"))
        for stream in (sys.stdout, sys.stderr):
            # A file name or an answer may hold such characters.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def flush_or_discard() -> None:
    """Flush the standard output; what it cannot take is dropped, and Python does not try again."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _ClosedOutput(io.TextIOBase):
    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "the standard output is closed")


def _occupy(descriptor: int) -> None:
    """Keeps the number of a closed stream from the next file, which prints would then damage."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
