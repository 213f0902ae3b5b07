"""Logs of a run: one line of JSON a step, cut to the checkpoint when a run resumes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO

from setokim.utils.files import naming


def open_log(path: Path, step: int, gapless: bool = False) -> BinaryIO:
    """Open a log to append after the lines up to `step`.

    Later lines of a killed run are cut off, because the resumed run writes them again.

    Args:
        path: path of the log; it is created if it does not exist.
        step: last step whose line stays.
        gapless: flag of a log with a line for each step, see `kept_length`.

    Raises:
        OSError, ValueError: see `kept_length`; nothing is cut off.
    """
    path.touch()
    os.truncate(path, kept_length(path, step, gapless))
    # Unbuffered: on a full disk, closing would try to write the rest again.
    return path.open("ab", buffering=0)


def kept_length(path: Path, step: int, gapless: bool = False) -> int:
    """Return the number of bytes of a log up to the last line of a step up to `step`.

    Those lines were on the disk before the checkpoint of that step. The rest may be damaged, such
    as half a line of a killed process, or zeros after a power cut.

    Args:
        path: path of the log, with a JSON object with a "step" in each line, in rising order. A
            missing file counts as empty.
        step: last step whose line stays.
        gapless: flag of a log with a line for each step, in which the last line that stays must be
            that of `step`. The first steps may be missing, if a checkpoint was copied from another
            folder.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line that should stay is damaged or missing; the message names file and line.
    """
    length, last, damaged = 0, None, None
    if not path.exists():
        return length
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            found = _step_of(line)
            if found is None:
                damaged = damaged or number
            elif found > step:
                break
            elif damaged:
                expected = "a JSON object with a step"
                raise ValueError(f"{path}:{damaged}: expected {expected}, got a damaged line")
            else:
                length, last = length + len(line), found
    if gapless and last != step and (damaged or last is not None):
        where = f"{path}:{damaged}" if damaged else str(path)
        got = "a damaged line" if damaged else f"step {last} as the last"
        raise ValueError(
            f"{where}: expected lines up to step {step} of the checkpoint, got {got}; "
            f"move the file away to continue without it"
        )
    return length


def write_line(file: BinaryIO, values: dict) -> None:
    """Append a line that survives a kill of the process.

    Args:
        file: log of `open_log`.
        values: finite numbers by name, with "step".

    Raises:
        OSError: writing failed, such as on a full disk; the message names the file.
    """
    with naming(file.name):
        left = json.dumps(values, allow_nan=False).encode() + b"\n"
        while left:
            left = left[file.write(left) :]


def sync_log(file: BinaryIO) -> None:
    """Write a log through to the disk, so that it survives a power cut.

    Raises:
        OSError: writing failed, such as on a full disk; the message names the file.
    """
    with naming(file.name):
        os.fsync(file.fileno())


def _step_of(line: bytes) -> int | None:
    """Return the step of a line; None if the line is damaged."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    step = values.get("step") if isinstance(values, dict) else None
    return step if type(step) is int else None
