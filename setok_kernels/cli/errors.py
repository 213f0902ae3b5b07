"""Errors that a command reports in one line: wrong usage, and failures of the machine."""

from __future__ import annotations

import re


class UsageError(Exception):
    """An error that the user can correct: printed without a traceback, exit code 2."""


def missing_package(error: ImportError, extras: str | None = None, subject: str = "") -> UsageError:
    """Return the error of a failed import, with the remedy.

    Args:
        error: error of the import.
        extras: extras of setok-kernels with the package, unless the error names one itself; None
            where no extra has it.
        subject: option that needs the package, with a space after it.
    """
    name = (error.name or "").partition(".")[0]
    if not name or not isinstance(error, ModuleNotFoundError):
        # The package is installed but too old or broken, or the message itself names the remedy.
        return UsageError(f"{subject}cannot import what it needs: {one_line(error)}")
    extras = getattr(error, "extra", None) or extras
    remedy = f'"setok-kernels[{extras}]"' if extras else name
    return UsageError(f"{subject}needs {name}: pip install {remedy}")


def machine_failure(error: BaseException) -> str | None:
    """Describe a failure of the machine, such as a full disk, a closed pipe or a lack of memory.

    Args:
        error: any error of a command.

    Returns:
        One line; None where the error may be a bug.
    """
    if isinstance(error, OSError):
        return one_line(error)
    message = one_line(error)
    if isinstance(error, MemoryError):
        return f"out of memory: {message}" if message else "out of memory"
    # torch has a class for accelerators, and raises a plain RuntimeError on the CPU.
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory: {message}"
    found = re.search(r"can't allocate memory: you tried to allocate (\d+) bytes", message)
    return f"out of memory: {int(found[1]) / 2**30:,.1f} GiB in one piece" if found else None


def one_line(error: BaseException) -> str:
    """Return the message of an error without line breaks."""
    return " ".join(str(error).split())
