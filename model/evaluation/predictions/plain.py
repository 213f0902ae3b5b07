"""Plain files of ids and answers, and the uploads that servers take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from setokim.evaluation.predictions.prediction import (
    IMAGE,
    QUESTION_ID,
    Prediction,
    PredictionError,
    answer_of,
    id_of,
    optional_text,
)

_IDS = ("question_id", "questionId", "id")
_IMAGES = ("image_id", "image")
# Those of one program each: VQA, LLaVA, GQA, captions of COCO, A-OKVQA.
ANSWERS = ("answer", "text", "prediction", "caption", "direct_answer", "multiple_choice")


def matches(row: Mapping[str, Any]) -> bool:
    """Return whether a row has an id and an answer."""
    has_id = any(name in row for name in _IDS + _IMAGES)
    return has_id and any(name in row for name in ANSWERS)


def read(row: Mapping[str, Any], source: str, field: str | None = None) -> Prediction:
    """Return the prediction of a row.

    Args:
        row: fields of the row.
        source: file and line, for messages.
        field: name of the field with the answer; None for the only one of `ANSWERS`.

    Raises:
        PredictionError: no field or several have an id or answer.
    """
    if field is None:
        found = [name for name in ANSWERS if name in row]
        if len(found) != 1:
            expected = f"one field of {', '.join(ANSWERS)}"
            got = " and ".join(found) or "none"
            raise PredictionError(f"{source}: expected {expected}, got {got}; see --field")
        field = found[0]
    if field not in row:
        raise PredictionError(f"{source}: expected a field {field!r}, got {', '.join(row)!r:.80}")
    ids = {}
    for kind, names in ((QUESTION_ID, _IDS), (IMAGE, _IMAGES)):
        name = next((name for name in names if name in row), None)
        if name is not None:
            ids[kind] = id_of(row[name], name, source)
    if not ids:
        expected = ", ".join(_IDS + _IMAGES)
        raise PredictionError(f"{source}: expected one field of {expected}, got none")
    category = optional_text(row, "category")
    return Prediction(
        answer_of(row[field], field, source),
        source,
        ids,
        optional_text(row, "question") or optional_text(row, "prompt"),
        categories=() if category is None else (category,),
    )
