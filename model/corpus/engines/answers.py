"""Answers of a worker in another process: its report, or its error with the type and traceback."""

from __future__ import annotations

import pickle
import traceback

from setokim.corpus.engines.interface import PartFailure


class WorkerTraceback(Exception):
    """Text of a traceback from another process, as the cause of the error that it belongs to."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def pack_report(report: dict | PartFailure) -> bytes:
    """Return the answer with a report or the failure of a part.

    Raises:
        Exception: the report cannot be pickled.
    """
    return pickle.dumps((report, None, ""))


def pack_error(error: Exception) -> bytes:
    """Return the answer with an error; one that cannot be pickled becomes a RuntimeError."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return pickle.dumps((None, error, text))


def unpack(answer: bytes) -> dict | PartFailure:
    """Return the report or the failure of an answer.

    Raises:
        Exception: the error of the answer.
    """
    report, error, text = pickle.loads(answer)
    if error is not None:
        raise error from WorkerTraceback(text)
    return report
