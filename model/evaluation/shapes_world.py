"""Metrics of the ShapesWorld tasks: answers, generated and edited images, masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

import numpy as np

from setokim.evaluation.prompting import BLIND, Response
from setokim.evaluation.segmentation_scores import SegmentationScore
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


def shapes_metrics(rows: Iterable[Response]) -> dict[str, float]:
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
    metrics: dict[str, float] = {}
    for part, score in _METRICS.items():
        if part in by_part:
            metrics |= score(by_part[part])
    return metrics


def _questions(rows: Sequence[Response]) -> dict[str, float]:
    kinds = [_of_turn(row, "kinds") for row in rows]
    wanted = [_of_turn(row, "answers") for row in rows]
    scores = answer_accuracy([row.text for row in rows], wanted, kinds)
    questions = [Question(kind, "", answer, ()) for kind, answer in zip(kinds, wanted, strict=True)]
    return {
        "vqa_accuracy": scores.pop("overall"),
        **{f"vqa_{kind}": score for kind, score in scores.items()},
        "vqa_chance": chance(questions),
    }


def _blind(rows: Sequence[Response]) -> dict[str, float]:
    kinds = [_of_turn(row, "kinds") for row in rows]
    wanted = [_of_turn(row, "answers") for row in rows]
    answers = [row.text for row in rows]
    return {"vqa_language_only": answer_accuracy(answers, wanted, kinds)["overall"]}


def _sums(rows: Sequence[Response]) -> dict[str, float]:
    return {"text_accuracy": fmean(row.text == _of_turn(row, "answers") for row in rows)}


def _captions(rows: Sequence[Response]) -> dict[str, float]:
    return _means("caption", [caption_scores(row.text, _scene(row, "scene")) for row in rows])


def _positions(rows: Sequence[Response]) -> dict[str, float]:
    return _means("locate", [locating_scores(row.text, _scene(row, "scene")) for row in rows])


def _generated(rows: Sequence[Response]) -> dict[str, float]:
    scores = [generation_scores(_seen(row), _scene(row, "wanted")) for row in rows]
    return _means("generation", scores)


def _edits(rows: Sequence[Response]) -> dict[str, float]:
    scenes = [(_seen(row), _scene(row, "scene"), _scene(row, "wanted")) for row in rows]
    success = fmean(edit_success(*three) for three in scenes)
    return {"edit_success": success, **_means("edit", [edit_scores(*three) for three in scenes])}


def _masks(rows: Sequence[Response]) -> dict[str, float]:
    score = SegmentationScore()
    for row in rows:
        target = row.prompt.target
        # An answer without a mask counts as an empty mask.
        score.add(np.zeros_like(target) if row.mask is None else row.mask, target)
    return {"ciou": score.ciou, "giou": score.giou}


_METRICS: dict[str, Callable[[Sequence[Response]], dict[str, float]]] = {
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


def _means(task: str, scores: list[dict[str, float]]) -> dict[str, float]:
    return {f"{task}_{name}": fmean(score[name] for score in scores) for name in scores[0]}
