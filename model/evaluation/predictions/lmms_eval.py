"""Samples files of lmms-eval, DATE_samples_TASK.jsonl of its option --log_samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from setokim.evaluation.predictions.prediction import (
    IMAGE,
    POSITION,
    QUESTION_ID,
    Prediction,
    PredictionError,
    answer_of,
    id_of,
    optional_text,
)
from setokim.evaluation.predictions.samples import identity_of, reference_of
from setokim.evaluation.prompting import Response

_RESPONSES = ("filtered_resps", "resps")
_NAMES = {
    QUESTION_ID: ("question_id", "questionId", "id"),
    IMAGE: ("image_id", "image_source", "image_path", "img_id"),
}


def matches(row: Mapping[str, Any]) -> bool:
    """Return whether a row is a sample of lmms-eval."""
    return "doc_id" in row and any(name in row for name in _RESPONSES)


def read(row: Mapping[str, Any], source: str) -> Prediction:
    """Return the prediction of a row.

    Ids come from `doc`, which some versions keep, or from the values that a task keeps for its
    metrics. All else that a row has is the position in the task's data set.

    Raises:
        PredictionError: the row has no response or several, or a field is of another type.
    """
    position = row["doc_id"]
    if isinstance(position, bool) or not isinstance(position, int):
        raise PredictionError(f"{source}: doc_id: expected an int, got {position!r:.80}")
    ids: dict[str, Any] = {}
    categories: tuple[str, ...] = ()
    question = optional_text(row, "input")
    for values in _documents(row):
        for kind, names in _NAMES.items():
            name = next((name for name in names if isinstance(values.get(name), (str, int))), None)
            if name is not None:
                ids.setdefault(kind, id_of(values[name], name, source))
        category = optional_text(values, "category")
        categories = categories or (() if category is None else (category,))
        question = question or optional_text(values, "question")
    return Prediction(
        _response(row, source),
        source,
        ids | {POSITION: position},
        question,
        optional_text(row, "target"),
        categories,
    )


def write(rows: Sequence[Response]) -> list[dict[str, Any]]:
    """Return the lines of a samples file, without lmms-eval's hashes of its own documents."""
    return [
        {
            "doc_id": row.prompt.number,
            "target": reference_of(row.prompt) or str(row.prompt.facts.get("answers", "")),
            "filtered_resps": [row.text],
            "submission": identity_of(row.prompt) | {"answer": row.text},
            "input": row.prompt.text,
        }
        for row in rows
    ]


def _documents(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if isinstance(row.get("doc"), Mapping):
        yield row["doc"]
    for name, value in row.items():
        if name != "doc" and isinstance(value, Mapping):
            # "id" is a running number there.
            yield {key: one for key, one in value.items() if key != "id"}


def _response(row: Mapping[str, Any], source: str) -> str:
    name = next(name for name in _RESPONSES if name in row)
    value = row[name]
    while isinstance(value, list):
        if len(value) != 1:
            raise PredictionError(f"{source}: {name}: expected one response, got {len(value)}")
        value = value[0]
    return answer_of(value, name, source)
