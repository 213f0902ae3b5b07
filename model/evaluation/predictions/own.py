"""Our own log of answers, predictions.jsonl of `setok eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from setokim.data import BrokenSampleError
from setokim.data.readers.files import file_in
from setokim.data.rle import decode_rle
from setokim.evaluation.answer_log import to_plain
from setokim.evaluation.predictions.prediction import OWN, Prediction, PredictionError, answer_of
from setokim.evaluation.prompting import Response

_TYPES = {"part": str, "asked": str, "facts": dict, "number": int, "turn": int}
_FIELDS = ("part", "number", "turn", "asked", "said", "facts")


def matches(row: Mapping[str, Any]) -> bool:
    """Return whether a row is an answer, or a sample that could not be read."""
    return all(name in row for name in _FIELDS) or all(
        name in row for name in ("number", "source", "broken")
    )


def read(row: Mapping[str, Any], source: str, folder: Path) -> Prediction | None:
    """Return the prediction of a row; None for a sample that could not be read.

    Args:
        row: fields of the row.
        source: file and line, for messages.
        folder: folder of the log, with the generated images.

    Raises:
        PredictionError: a field is missing or of another type.
    """
    if "broken" in row:
        return None
    for name, kind in _TYPES.items():
        if not isinstance(row.get(name), kind):
            got = f"{row.get(name)!r:.80}"
            raise PredictionError(f"{source}: {name}: expected {kind.__name__}, got {got}")
    try:
        mask = None if row.get("mask") is None else decode_rle(row["mask"])
    except (ValueError, TypeError, KeyError) as error:
        raise PredictionError(f"{source}: mask: expected run lengths, got {error}") from error
    image = row.get("picture")
    if image is not None:
        # The log lies in one folder with its images.
        try:
            image = file_in(folder, answer_of(image, "picture", source), source)
        except BrokenSampleError as error:
            raise PredictionError(f"{source}: picture: {error.reason}") from error
    return Prediction(
        answer_of(row.get("said"), "said", source),
        source,
        {OWN: (row["part"], row["number"], row["turn"])},
        row["asked"],
        facts=row["facts"],
        mask=mask,
        generated=image,
    )


def write(rows: Sequence[Response]) -> list[dict[str, Any]]:
    """Return the lines of responses without generated images."""
    return [to_plain(row) for row in rows]
