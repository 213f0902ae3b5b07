"""Standard output and error that take any text, and report when they are closed."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def writable_streams() -> Iterator[None]:
    """Make the standard streams take characters outside the locale, and replace closed ones.

    Writing to a closed standard output raises OSError; text for a closed standard error is lost.
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
    """Flush the standard output; text it cannot take is dropped, and Python does not try again."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _ClosedOutput(io.TextIOBase):
    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "the standard output is closed")


def _occupy(descriptor: int) -> None:
    """Keep the next file from the number of a closed stream: prints would damage it."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
