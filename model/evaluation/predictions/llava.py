"""LLaVA's answers files, as its evaluation scripts write them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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
from setokim.evaluation.predictions.samples import MM_VET, question_id_of
from setokim.evaluation.prompting import Response

_OTHERS = ("prompt", "answer_id", "model_id", "metadata")


def matches(row: Mapping[str, Any]) -> bool:
    """Return whether a row is an answer in LLaVA's fields."""
    return "question_id" in row and "text" in row and any(name in row for name in _OTHERS)


def read(
    row: Mapping[str, Any], source: str, questions: Mapping[str, Mapping[str, Any]] | None = None
) -> Prediction:
    """Return the prediction of a row.

    Args:
        row: fields of the row.
        source: file and line, for messages.
        questions: rows of LLaVA's question file by id, for benchmarks whose questions LLaVA
            numbers on its own, such as POPE; None for none.

    Raises:
        PredictionError: a field is missing, or the questions lack the row's.
    """
    number = id_of(row.get("question_id"), "question_id", source)
    ids = {QUESTION_ID: number}
    prompt = optional_text(row, "prompt")
    category = None
    if questions is not None:
        if number not in questions:
            raise PredictionError(f"{source}: expected a question of --questions, got {number}")
        asked = questions[number]
        text = optional_text(asked, "text")
        if None not in (text, prompt) and text != prompt:
            expected = f"the prompt of question {number}, {text!r:.80}"
            raise PredictionError(f"{source}: expected {expected}, got {prompt!r:.80}")
        prompt = prompt or text
        image = {IMAGE: id_of(asked.get("image"), "image", f"--questions: {number}")}
        category = optional_text(asked, "category")
        # Questions of several subsets in one file have numbers of LLaVA's own.
        ids = image if category is not None else ids | image
    return Prediction(
        answer_of(row.get("text"), "text", source),
        source,
        ids,
        prompt,
        categories=() if category is None else (category,),
    )


def write(rows: Sequence[Response]) -> list[dict[str, Any]]:
    """Return the lines of an answers file.

    LLaVA's random "answer_id" is a hash of question and answer, so that the file is reproducible.
    """
    lines = []
    for row in rows:
        number = question_id_of(row.prompt)
        if isinstance(number, str) and number.startswith(MM_VET):
            number = number.removeprefix(MM_VET)
            number = int(number) if number.isdecimal() else number
        digest = hashlib.sha256(f"{number}\n{row.text}".encode("utf-8", "surrogatepass"))
        lines.append(
            {
                "question_id": number,
                "prompt": row.prompt.text,
                "text": row.text,
                "answer_id": digest.hexdigest()[:22],
                "model_id": "setokim",
                "metadata": {},
            }
        )
    return lines
