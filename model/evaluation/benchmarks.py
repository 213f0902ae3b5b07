"""The benchmarks by name: where their questions come from, and what their figures are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from setokim.data import Dataset
from setokim.data.readers import READERS
from setokim.data.rle import decode_rle
from setokim.data.settings import DataSettings
from setokim.evaluation.asking import Answered
from setokim.evaluation.cider import cider
from setokim.evaluation.image_scores import PictureFigures, drawing_figures, pair_figures
from setokim.evaluation.segmentation_scores import SegmentationScore
from setokim.evaluation.settings import GenerationSettings
from setokim.evaluation.shapes_world import shapes_figures
from setokim.evaluation.vqa_answers import choice_of, soft_accuracy
from setokim.evaluation.yes_no import MmeRecord, mme_scores, pope_scores
from setokim.utils.parsing import from_plain, import_modules, read_yaml


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        open: a folder and, where there are several, the name of a split to samples.
        figures: of all answers; None where a judge outside, or what was drawn, has to give them.
        split: that figures are published of; None where there is one alone.
        submission: what its server takes, from all answers; None where there is no server.
        clusters: whether the clusters of pictures are judged, and nothing is asked.
        blind: whether questions are asked once more without their picture.
        answers: the fact that a sample without a public answer lacks; None where all have one.
        generation: how to generate with the data in a folder, where it is not as usual.
        pictures: of what was drawn beside what was wanted; None where nothing is drawn.
    """

    open: Callable[..., Dataset]
    figures: Callable[[Sequence[Answered]], dict[str, float]] | None
    split: str | None = None
    submission: Callable[[Sequence[Answered]], Any] | None = None
    clusters: bool = False
    blind: bool = False
    answers: str | None = None
    generation: Callable[[Path], dict[str, Any]] = lambda path: {}
    pictures: PictureFigures | None = None

    def has_answers(self, rows: Sequence[Answered]) -> bool:
        """Whether there is something to judge by: a public answer, and figures of our own."""
        if self.figures is None:
            return False
        return self.answers is None or any(_known(row, self.answers) for row in rows)


def _soft(rows: Sequence[Answered]) -> dict[str, float]:
    """VQAv2 and OK-VQA, in percent; rows without answers do not count."""
    judged = [row for row in rows if _known(row, "answers")]
    scores = [100 * soft_accuracy(row.said, row.asked.facts["answers"]) for row in judged]
    kinds: dict[str, list[float]] = {}
    for row, score in zip(judged, scores, strict=True):
        if "answer_type" in row.asked.facts:
            kinds.setdefault(f"accuracy/{row.asked.facts['answer_type']}", []).append(score)
    return {"accuracy": fmean(scores)} | {name: fmean(own) for name, own in sorted(kinds.items())}


def _exact(rows: Sequence[Answered]) -> dict[str, float]:
    """GQA: percent of answers that are the right one, letter by letter."""
    judged = [row for row in rows if _known(row, "answers")]
    right = (_bare(row.said) == row.asked.facts["answers"][0] for row in judged)
    return {"accuracy": 100 * fmean(right)}


def _direct(rows: Sequence[Answered]) -> dict[str, float]:
    """A-OKVQA's free answers, in percent: letter by letter what three of ten people said.

    D. Schwenk et al., "A-OKVQA: A Benchmark for Visual Question Answering using World Knowledge",
    2022; unlike VQAv2, no one of the ten is left out in turn. Questions that the authors mark as
    too hard to answer without choices do not count: `left_out` is their number.
    """
    known = [row for row in rows if _known(row, "answers")]
    judged = [row for row in known if not row.asked.facts["difficult_direct_answer"]]
    scores = [min(1, row.asked.facts["answers"].count(_bare(row.said)) / 3) for row in judged]
    figures = {"accuracy": 100 * fmean(scores)} if scores else {}
    return figures | {"left_out": len(known) - len(judged)}


def _chosen(rows: Sequence[Answered]) -> dict[str, float]:
    """A-OKVQA by choice, in percent."""
    judged = [row for row in rows if _known(row, "correct")]
    right = (
        choice_of(row.said, row.asked.facts["choices"]) == row.asked.facts["correct"]
        for row in judged
    )
    return {"accuracy": 100 * fmean(right)}


def _captions(rows: Sequence[Answered]) -> dict[str, float]:
    """CIDEr in percent, as published."""
    said = {str(row.asked.facts["image_id"]): row.said for row in rows}
    references = {str(row.asked.facts["image_id"]): row.asked.facts["answers"] for row in rows}
    return {"cider": 100 * cider(said, references)[0]}


def _pope(rows: Sequence[Answered]) -> dict[str, float]:
    return pope_scores([row.said for row in rows], [row.asked.facts["label"] for row in rows])


def _mme(rows: Sequence[Answered]) -> dict[str, float]:
    return mme_scores(
        MmeRecord(*(row.asked.facts[name] for name in ("task", "image", "label")), row.said)
        for row in rows
    )


def mm_vet_scores(
    rows: Sequence[Answered], judge: Callable[[str, str, str], float]
) -> dict[str, float]:
    """MM-Vet by a judge of one's own, in percent.

    W. Yu et al., "MM-Vet: Evaluating large multimodal models for integrated capabilities", 2023.
    The official judge is a language model behind the server that takes the submission.

    Args:
        rows: answers to MM-Vet's questions, at least one.
        judge: question, right answer and answer of the model to a score in [0, 1].

    Returns:
        `total`, and for each capability the mean of the questions that want it.

    Raises:
        ValueError: a score is out of range.
    """
    scores: dict[str, list[float]] = {}
    for row in rows:
        facts = row.asked.facts
        score = judge(facts["question"], facts["answers"][0], row.said)
        if not 0 <= score <= 1:
            raise ValueError(f"judge: expected a score in [0, 1], got {score}")
        for name in ("total", *facts["capabilities"]):
            scores.setdefault(name, []).append(100 * score)
    return {name: fmean(own) for name, own in scores.items()}


def _masks(rows: Sequence[Answered]) -> dict[str, float]:
    """Of all phrases; what does not count either way is left out of both masks."""
    score = SegmentationScore()
    for row in rows:
        target = row.asked.target
        mask = np.zeros_like(target) if row.mask is None else row.mask
        if "ignored" in row.asked.facts:
            mask = mask & ~decode_rle(row.asked.facts["ignored"])
        score.add(mask, target)
    return score.summary()


def _answers_by_number(rows: Sequence[Answered]) -> list[dict[str, Any]]:
    return [{"question_id": row.asked.facts["question_id"], "answer": row.said} for row in rows]


def _mm_vet_submission(rows: Sequence[Answered]) -> dict[str, str]:
    return {row.asked.facts["question_id"]: row.said for row in rows}


def _gqa_submission(rows: Sequence[Answered]) -> list[dict[str, Any]]:
    return [
        {"questionId": row.asked.facts["question_id"], "prediction": _bare(row.said)}
        for row in rows
    ]


def _aokvqa_submission(rows: Sequence[Answered]) -> dict[str, dict[str, str]]:
    return {row.asked.facts["question_id"]: {"direct_answer": _bare(row.said)} for row in rows}


def _choice_submission(rows: Sequence[Answered]) -> dict[str, dict[str, str]]:
    found = {}
    for row in rows:
        number = choice_of(row.said, row.asked.facts["choices"])
        choice = row.said if number is None else row.asked.facts["choices"][number]
        found[row.asked.facts["question_id"]] = {"multiple_choice": choice}
    return found


def _shapes(path: str | Path, split: str | None = None) -> Dataset:
    """The held-out conversations of a run, from its YAML file."""
    path = Path(path)
    values = read_yaml(path)
    import_modules(values.get("imports", []), path.parent)
    held_out = values.get("held_out", {"samples": 256})
    return from_plain(DataSettings, held_out, "held_out.").build()


def _shapes_generation(path: Path) -> dict[str, Any]:
    generation = read_yaml(path).get("generation", {})
    return dataclasses.asdict(from_plain(GenerationSettings, generation, "generation."))


def _bare(said: str) -> str:
    """An answer as the scorers expect it that compare letters: no sentence, in small letters."""
    return said.strip().removesuffix(".").lower()


def _known(row: Answered, name: str) -> bool:
    return row.asked.facts[name] not in (None, [])


_ANSWERS = {"answers": "answers"}
BENCHMARKS: dict[str, Benchmark] = {
    "vqav2": Benchmark(READERS["vqav2"], _soft, "val2014", _answers_by_number, **_ANSWERS),
    "okvqa": Benchmark(READERS["okvqa"], _soft, "val2014", _answers_by_number, **_ANSWERS),
    "aokvqa": Benchmark(READERS["aokvqa"], _direct, "val", _aokvqa_submission, **_ANSWERS),
    "aokvqa-choice": Benchmark(
        partial(READERS["aokvqa"], choices=True),
        _chosen,
        "val",
        _choice_submission,
        answers="correct",
    ),
    "gqa": Benchmark(READERS["gqa"], _exact, "testdev_balanced", _gqa_submission, **_ANSWERS),
    "flickr30k": Benchmark(READERS["flickr30k"], _captions, "test"),
    "coco-captions": Benchmark(READERS["coco-captions"], _captions, "val2017"),
    "coco-panoptic": Benchmark(READERS["coco-panoptic"], None, "val2017", clusters=True),
    "pope-random": Benchmark(READERS["pope"], _pope, "random"),
    "pope-popular": Benchmark(READERS["pope"], _pope, "popular"),
    "pope-adversarial": Benchmark(READERS["pope"], _pope, "adversarial"),
    "mme": Benchmark(READERS["mme"], _mme),
    "mm-vet": Benchmark(READERS["mm-vet"], None, None, _mm_vet_submission),
    "refcoco+": Benchmark(READERS["refcoco+"], _masks, "val"),
    "refcocog": Benchmark(READERS["refcocog"], _masks, "val"),
    "reasonseg": Benchmark(READERS["reasonseg"], _masks),
    "coco-generation": Benchmark(
        partial(READERS["coco-captions"], draw=True), None, "val2014", pictures=drawing_figures
    ),
    "instructpix2pix": Benchmark(READERS["instructpix2pix"], None, "train", pictures=pair_figures),
    "magicbrush": Benchmark(READERS["magicbrush"], None, "test", pictures=pair_figures),
    "evr": Benchmark(READERS["evr"], None, "test", pictures=pair_figures),
    "ma5k": Benchmark(READERS["ma5k"], None, "test", pictures=pair_figures),
    "shapes-world": Benchmark(_shapes, shapes_figures, blind=True, generation=_shapes_generation),
}
