"""One prediction of a file: an answer, and what identifies its question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# What identifies a question, in the order of preference: our own index of a sample, the id of the
# data set, the image, the running index of VLMEvalKit, the position in the data set.
OWN, QUESTION_ID, IMAGE, INDEX, POSITION = "own", "question_id", "image", "index", "position"
KINDS = (OWN, QUESTION_ID, IMAGE, INDEX, POSITION)


class PredictionError(ValueError):
    """Error for predictions that cannot be scored; the message names file and line."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """An answer of a file.

    Attributes:
        text: answer; may be empty.
        source: file and line, for messages.
        ids: identification of the question by kind, one of `KINDS` or several.
        question: question as the file has it, with the prompts of its program; None if the file
            has none.
        reference: right answer as the file has it; None if the file has none.
        categories: subsets of the benchmark with the question; empty if the file names none.
        facts: facts of the sample in a log of ours.
        mask: (h, w) bool, mask in a log of ours; None for none.
        generated: path of the image in a log of ours; None for none.
    """

    text: str
    source: str
    ids: Mapping[str, Any]
    question: str | None = None
    reference: str | None = None
    categories: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    mask: np.ndarray | None = None
    generated: Path | None = None

    def same_answer(self, other: Prediction) -> bool:
        """Return whether both rows have one text, mask and image."""
        if self.mask is None or other.mask is None:
            is_same_mask = self.mask is other.mask
        else:
            is_same_mask = np.array_equal(self.mask, other.mask)
        return is_same_mask and (self.text, self.generated) == (other.text, other.generated)


def id_of(value: Any, name: str, source: str) -> str:
    """Return an id as text: programs write the same id as a number and as text.

    Args:
        value: text, or a whole number.
        name: field, for messages.
        source: file and line, for messages.

    Raises:
        PredictionError: the value is neither.
    """
    if isinstance(value, float) and value.is_integer():
        # Tables have no integers.
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise PredictionError(f"{source}: {name}: expected an id, got {value!r:.80}")
    return value.strip()


def answer_of(value: Any, name: str, source: str) -> str:
    """Return an answer as text; a bare number becomes its digits.

    Args:
        value: text or number.
        name: field, for messages.
        source: file and line, for messages.

    Raises:
        PredictionError: the value is neither.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise PredictionError(f"{source}: {name}: expected a text, got {value!r:.80}")
    return value


def optional_text(row: Mapping[str, Any], name: str) -> str | None:
    """Return a field if it is a text that is not empty, else None."""
    value = row.get(name)
    return value if isinstance(value, str) and value.strip() else None
