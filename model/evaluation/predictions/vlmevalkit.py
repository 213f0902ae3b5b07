"""Result files of VLMEvalKit, MODEL_DATASET.xlsx or .tsv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from setokim.evaluation.predictions.prediction import (
    IMAGE,
    INDEX,
    POSITION,
    QUESTION_ID,
    Prediction,
    PredictionError,
    answer_of,
    id_of,
)
from setokim.evaluation.predictions.samples import MM_VET, identity_of, question_of
from setokim.evaluation.prompting import Prompt, Response

_NAMES = {QUESTION_ID: ("question_id", "questionId"), IMAGE: ("image_path", "image_id")}
# What VLMEvalKit writes in place of an answer that it did not get.
_FAILED = "Failed to obtain answer"


def matches(row: Mapping[str, Any]) -> bool:
    """Return whether a row is a result of VLMEvalKit."""
    return "index" in row and "prediction" in row


def read(row: Mapping[str, Any], source: str, position: int) -> Prediction | None:
    """Return the prediction of a row; None for a failed one.

    Args:
        row: fields of the row.
        source: file and line, for messages.
        position: number of rows before it.

    Raises:
        PredictionError: a field is missing or of another type.
    """
    text = answer_of(row["prediction"], "prediction", source)
    if text.startswith(_FAILED):
        return None
    ids: dict[str, Any] = {}
    for kind, names in _NAMES.items():
        name = next((name for name in names if _text(row, name)), None)
        if name is not None:
            ids[kind] = id_of(row[name], name, source)
    ids[INDEX] = id_of(row["index"], "index", source)
    # One row may be a question of several subsets.
    categories = tuple(part.strip() for part in _text(row, "category").split(",") if part.strip())
    return Prediction(
        text,
        source,
        ids | {POSITION: position},
        _text(row, "question") or None,
        _text(row, "answer") or None,
        categories,
    )


def write(rows: Sequence[Response]) -> list[dict[str, Any]]:
    """Return the rows of a result file: its usual columns, and ids of the data set.

    Raises:
        PredictionError: an answer is what VLMEvalKit writes for a failure.
    """
    table = []
    for row in rows:
        if row.text.startswith(_FAILED):
            source = row.prompt.source
            raise PredictionError(
                f"{source}: expected an answer, got VLMEvalKit's {row.text!r:.80}"
            )
        facts, known = row.prompt.facts, identity_of(row.prompt)
        if "image" in known:
            known["image_path"] = known.pop("image")
        if "capabilities" in facts:
            known["category"] = ",".join(facts["capabilities"])
        table.append(
            {"index": _index(row.prompt)}
            | known
            | {
                "question": question_of(row.prompt) or "",
                "answer": _answer(facts),
                "prediction": row.text,
            }
        )
    return table


def _index(prompt: Prompt) -> int:
    """Return the number in an id of MM-Vet, as VLMEvalKit has it; else that of the sample."""
    number = str(prompt.facts.get("question_id", "")).removeprefix(MM_VET)
    is_vet = "capabilities" in prompt.facts and number.isdecimal()
    return int(number) if is_vet else prompt.number


def _answer(facts: Mapping[str, Any]) -> str:
    """Return the right answer, or the list of them, as VLMEvalKit compares with it."""
    if "label" in facts:
        return facts["label"].capitalize()
    answers = facts.get("answers") or [""]
    return answers[0] if len(answers) == 1 else str(answers)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name, "")
    # An empty cell is NaN in a JSON file.
    is_empty = not isinstance(value, (str, int, float)) or value != value
    return "" if is_empty else str(value).strip()
