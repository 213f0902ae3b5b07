"""Errors that a command reports in one line: the user's, and those of the machine."""

from __future__ import annotations

import re


class UsageError(Exception):
    """Something the user can put right: printed without a traceback, exit code 2."""


def missing_package(error: ImportError, extras: str | None = None, subject: str = "") -> UsageError:
    """Make the error of an import that failed, with the remedy.

    Args:
        error: what was raised.
        extras: extras of setok-kernels that bring the package, where the error does not name one
            itself; None where it is none of theirs.
        subject: what needs the package, with a space after it.
    """
    name = (error.name or "").partition(".")[0]
    if not name or not isinstance(error, ModuleNotFoundError):
        # The package is there but is too old or broken, or the one who misses it says so itself.
        return UsageError(f"{subject}cannot import what it needs: {one_line(error)}")
    extras = getattr(error, "extra", None) or extras
    remedy = f'"setok-kernels[{extras}]"' if extras else name
    return UsageError(f"{subject}needs {name}: pip install {remedy}")


def machine_failure(error: BaseException) -> str | None:
    """Describe an error that is not the program's: of the disk, a pipe, a lack of memory.

    Returns:
        One line; None where the error may be one of the program.
    """
    if isinstance(error, OSError):
        return one_line(error)
    said = one_line(error)
    if isinstance(error, MemoryError):
        return f"out of memory: {said}" if said else "out of memory"
    # torch names its own on accelerators, and raises a plain RuntimeError on the CPU.
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory: {said}"
    found = re.search(r"can't allocate memory: you tried to allocate (\d+) bytes", said)
    return f"out of memory: {int(found[1]) / 2**30:,.1f} GiB in one piece" if found else None


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split())
