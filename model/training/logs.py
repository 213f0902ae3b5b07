"""Logs of a run: a line of JSON a step, cut to the checkpoint that a run resumes from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO

from setokim.utils.files import naming


def open_log(path: Path, step: int, gapless: bool = False) -> BinaryIO:
    """Opens a log to write on after its last line of a step up to `step`.

    What a killed run wrote after its last checkpoint is cut off: it will be written again.

    Args:
        path: as of `kept_length`; made if need be.
        step: as of `kept_length`.
        gapless: as of `kept_length`.

    Raises:
        OSError, ValueError: as of `kept_length`; nothing is cut off.
    """
    path.touch()
    os.truncate(path, kept_length(path, step, gapless))
    # Without a buffer: what a full disk did not take, closing would try to write again.
    return path.open("ab", buffering=0)


def kept_length(path: Path, step: int, gapless: bool = False) -> int:
    """Number of bytes of a log up to the last line of a step up to `step`.

    The lines up to there were on the disk before the checkpoint of that step was; what comes after
    may be anything, such as half a line of a process that was killed, or zeros after a power cut.

    Args:
        path: JSON objects with a "step" a line, in rising order; there may be no such file.
        step: the last one that stays.
        gapless: whether each step has a line, so that the last line that stays must be that of
            `step`. The first steps may be missing: a checkpoint may have been taken elsewhere.

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
                expected = "an object with a step"
                raise ValueError(f"{path}:{damaged}: expected {expected}, got something else")
            else:
                length, last = length + len(line), found
    if gapless and last != step and (damaged or last is not None):
        where = f"{path}:{damaged}" if damaged else str(path)
        got = "something else" if damaged else f"step {last} as the last"
        raise ValueError(
            f"{where}: expected lines up to that of step {step}, the checkpoint's, got {got}; "
            f"move the file away to go on without it"
        )
    return length


def write_line(file: BinaryIO, values: dict) -> None:
    """Writes a line that is there when the process is killed.

    Args:
        file: of `open_log`.
        values: with "step"; numbers that JSON has.

    Raises:
        OSError: the disk is full, for one; the message names the file.
    """
    with naming(file.name):
        left = json.dumps(values, allow_nan=False).encode() + b"\n"
        while left:
            left = left[file.write(left) :]


def sync_log(file: BinaryIO) -> None:
    """Makes sure that what was written is there when the power fails.

    Raises:
        OSError: as of `write_line`.
    """
    with naming(file.name):
        os.fsync(file.fileno())


def _step_of(line: bytes) -> int | None:
    """The step of a line; None where it is damaged."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    step = values.get("step") if isinstance(values, dict) else None
    return step if type(step) is int else None
