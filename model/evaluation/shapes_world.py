"""Metrics of the ShapesWorld tasks: answers, generated and edited images, masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from setokim.evaluation.figures import Figures, Table
from setokim.evaluation.prompting import BLIND, Response
from setokim.evaluation.segmentation_scores import SegmentationScore
from setokim.evaluation.units import units_of
from setokim.shapes_world.parser import parse
from setokim.shapes_world.questions import Question, chance
from setokim.shapes_world.scene import Scene
from setokim.shapes_world.scores import (
    answer_accuracy,
    caption_scores,
    edit_scores,
    edit_success,
    generation_scores,
    locating_scores,
)

_RIGHT = "right up to case, spaces around and a final full stop"


def shapes_metrics(rows: Iterable[Response]) -> Figures:
    """Compute the metrics of answers about ShapesWorld scenes.

    Each task with answers has its own:

    - `vqa_accuracy` (exact match), also by kind; `vqa_chance`, the best constant answer to each
      kind; `vqa_language_only`, the same model without the image, if evaluated;
    - `caption_accuracy`, of size, colour, texture and shape of every object;
    - `locate_accuracy`, of colour, shape, size and position in the text;
    - `generation_accuracy`, of colour, shape, size and position of every object, which
      `parser.parse` recovers from the generated image, and each of the four;
    - `edit_success`, and its parts;
    - `ciou` and `giou` of the masks;
    - `text_accuracy`, of questions without an image.

    Args:
        rows: answers with the facts of `ShapesTasks`.
    """
    by_part: dict[str, list[Response]] = {}
    for row in rows:
        by_part.setdefault(row.prompt.part, []).append(row)
    found = Figures()
    for part, score in _METRICS.items():
        if part in by_part:
            # The tasks are the same in every test set, so that each has a table of its own.
            table = found.table(units_of(by_part[part]), name=part)
            score(found, table, by_part[part])
    return found


def _questions(found: Figures, table: Table, rows: Sequence[Response]) -> None:
    kinds = [_of_turn(row, "kinds") for row in rows]
    right = _right(rows)
    table.mean("vqa_accuracy", right, f"fraction of answers that are {_RIGHT}")
    for kind in sorted(set(kinds)):
        own = [other == kind for other in kinds]
        table.mean(f"vqa_{kind}", right, f"vqa_accuracy of questions of kind {kind}", own)
    wanted = [_of_turn(row, "answers") for row in rows]
    questions = [Question(kind, "", answer, ()) for kind, answer in zip(kinds, wanted, strict=True)]
    rule = "accuracy of the best constant answer to each kind of question"
    found.constant("vqa_chance", chance(questions), rule, "it is a property of the questions")


def _blind(found: Figures, table: Table, rows: Sequence[Response]) -> None:
    table.mean("vqa_language_only", _right(rows), "vqa_accuracy of the model without the image")


def _sums(found: Figures, table: Table, rows: Sequence[Response]) -> None:
    right = [row.text == _of_turn(row, "answers") for row in rows]
    table.mean("text_accuracy", right, "fraction of exact answers to questions without an image")


def _captions(found: Figures, table: Table, rows: Sequence[Response]) -> None:
    scores = [caption_scores(row.text, _scene(row, "scene")) for row in rows]
    _means(table, "caption", scores, "objects in the caption")


def _positions(found: Figures, table: Table, rows: Sequence[Response]) -> None:
    scores = [locating_scores(row.text, _scene(row, "scene")) for row in rows]
    _means(table, "locate", scores, "objects in the text with positions")


def _generated(found: Figures, table: Table, rows: Sequence[Response]) -> None:
    scores = [generation_scores(_seen(row), _scene(row, "wanted")) for row in rows]
    _means(table, "generation", scores, "objects read from the generated image")


def _edits(found: Figures, table: Table, rows: Sequence[Response]) -> None:
    scenes = [(_seen(row), _scene(row, "scene"), _scene(row, "wanted")) for row in rows]
    rule = "fraction of edited images with the change, all other objects and nothing else"
    table.mean("edit_success", [edit_success(*three) for three in scenes], rule)
    scores = [edit_scores(*three) for three in scenes]
    _means(table, "edit", scores, "objects read from the edited image")


def _masks(found: Figures, table: Table, rows: Sequence[Response]) -> None:
    score = SegmentationScore()
    for row in rows:
        target = row.prompt.target
        # An answer without a mask counts as an empty mask.
        score.add(np.zeros_like(target) if row.mask is None else row.mask, target)
    score.add_overlap(table)


_METRICS: dict[str, Callable[[Figures, Table, Sequence[Response]], None]] = {
    "vqa": _questions,
    BLIND: _blind,
    "caption": _captions,
    "locate": _positions,
    "generate": _generated,
    "edit": _edits,
    "segment": _masks,
    "text": _sums,
}


def _of_turn(row: Response, name: str) -> str:
    return row.prompt.facts[name][row.prompt.turn]


def _seen(row: Response):
    return () if row.image is None else parse(row.image)


def _scene(row: Response, name: str) -> Scene:
    return Scene.from_dict(row.prompt.facts[name])


def _right(rows: Sequence[Response]) -> list[float]:
    return [
        answer_accuracy([row.text], [_of_turn(row, "answers")], [_of_turn(row, "kinds")])["overall"]
        for row in rows
    ]


def _means(table: Table, task: str, scores: list[dict[str, float]], of_what: str) -> None:
    for name in scores[0]:
        rule = f"mean of `{name}` of the {of_what}"
        table.mean(f"{task}_{name}", [score[name] for score in scores], rule)
