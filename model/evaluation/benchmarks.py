"""Registry of the benchmarks: data set, metrics and submission of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from setokim.data import Dataset
from setokim.data.readers import READERS
from setokim.data.rle import decode_rle
from setokim.data.settings import DataSettings
from setokim.evaluation.caption_metrics import caption_metrics
from setokim.evaluation.ceilings import ceiling_metrics
from setokim.evaluation.clusters import cluster_metrics
from setokim.evaluation.figures import Figures
from setokim.evaluation.gqa import gqa_metrics
from setokim.evaluation.image_scores import ImageMetrics, edit_metrics, generation_metrics
from setokim.evaluation.linear_probe import ProbeImages, probe_metrics
from setokim.evaluation.prompting import Response
from setokim.evaluation.reconstruction import open_images, reconstruction_metrics
from setokim.evaluation.segmentation_scores import SegmentationScore
from setokim.evaluation.settings import GenerationSettings
from setokim.evaluation.shapes_world import shapes_metrics
from setokim.evaluation.units import units_of
from setokim.evaluation.vqa_answers import bare_answer, choice_of, soft_accuracy
from setokim.evaluation.yes_no import MmeRecord, mme_scores, pope_scores
from setokim.evaluation.zero_shot import ZeroShotImages, zero_shot_metrics
from setokim.utils.parsing import from_plain, import_modules, read_yaml

# File in the folder of a released model: held-out data and options of generation of its figures,
# the data of "shapes-world" for that model.
HELD_OUT = "held_out.yaml"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Data set, metrics and submission of one benchmark.

    Attributes:
        open: function from a folder and, if there are several, the name of a split to the data set.
        metrics: function from all responses to their metrics; None for an external judge and for
            benchmarks of images or of the tokenizer.
        split: split of the published metrics; None for a data set without splits.
        submission: function from all responses to the upload for the benchmark's server; None for
            a benchmark without a server.
        tokenizer: function from tokenizer, data set, number of samples and a callback to metrics,
            without responses; None for benchmarks of responses.
        blind: addition of each question of "vqa" without its image.
        answers: name of the fact that is empty without a public answer; None if all samples have
            one.
        generation: function from the data's folder to its own options of generation.
        image_metrics: function from generated images and their references to metrics; None for
            benchmarks of text, masks or the tokenizer.
        networks: use of the networks that judge images by `tokenizer`, as its last argument.
        chained: source images that are the model's own, as in `edit_chains`; metrics are over the
            last turn of each image.
    """

    open: Callable[..., Dataset]
    metrics: Callable[[Sequence[Response]], dict[str, float]] | None
    split: str | None = None
    submission: Callable[[Sequence[Response]], Any] | None = None
    tokenizer: Callable[..., dict[str, float]] | None = None
    blind: bool = False
    answers: str | None = None
    generation: Callable[[Path], dict[str, Any]] = lambda path: {}
    image_metrics: ImageMetrics | None = None
    networks: bool = False
    chained: bool = False

    def has_answers(self, rows: Sequence[Response]) -> bool:
        """Return whether metrics can be computed here: they exist and an answer is public."""
        if self.metrics is None:
            return False
        return self.answers is None or any(_known(row, self.answers) for row in rows)


def _soft(rows: Sequence[Response]) -> Figures:
    """Compute the accuracy of VQAv2 and OK-VQA in percent; rows without answers do not count."""
    judged = [row for row in rows if _known(row, "answers")]
    scores = [100 * soft_accuracy(row.text, row.prompt.facts["answers"]) for row in judged]
    kinds = [row.prompt.facts.get("answer_type") for row in judged]
    found = Figures()
    table = found.table(units_of(judged))
    rule = "min(1, n / 3) for n equal answers of annotators, averaged over leaving one out, percent"
    table.mean("accuracy", scores, rule)
    for kind in sorted({kind for kind in kinds if kind is not None}):
        own = [other == kind for other in kinds]
        table.mean(f"accuracy/{kind}", scores, f"accuracy of questions of type {kind!r}", own)
    return found


def _direct(rows: Sequence[Response]) -> Figures:
    """Compute the accuracy of A-OKVQA's direct answers in percent.

    D. Schwenk et al., "A-OKVQA: A Benchmark for Visual Question Answering using World Knowledge",
    2022: an answer has the full score if three of the ten annotators gave the same. Unlike in
    VQAv2, no annotator is left out in turn. Questions marked as too hard without choices do not
    count; `left_out` is their number.
    """
    known = [row for row in rows if _known(row, "answers")]
    judged = [row for row in known if not row.prompt.facts["difficult_direct_answer"]]
    equal = [row.prompt.facts["answers"].count(bare_answer(row.text)) for row in judged]
    scores = [min(1, number / 3) for number in equal]
    found = Figures()
    if judged:
        rule = "min(1, n / 3) for n equal answers of the ten annotators, percent"
        found.table(units_of(judged)).mean("accuracy", scores, rule, scale=100)
    rule = "questions marked as too hard without choices, which do not count"
    found.constant("left_out", len(known) - len(judged), rule)
    return found


def _chosen(rows: Sequence[Response]) -> Figures:
    """Compute the accuracy of A-OKVQA's multiple choice in percent."""
    judged = [row for row in rows if _known(row, "correct")]
    right = [
        choice_of(row.text, row.prompt.facts["choices"]) == row.prompt.facts["correct"]
        for row in judged
    ]
    found = Figures()
    rule = "right choices by letter or normalised text, percent"
    found.table(units_of(judged)).mean("accuracy", right, rule, scale=100)
    return found


def _pope(rows: Sequence[Response]) -> Figures:
    labels = [row.prompt.facts["label"] for row in rows]
    return pope_scores([row.text for row in rows], labels, units_of(rows))


def _mme(rows: Sequence[Response]) -> Figures:
    return mme_scores(
        MmeRecord(*(row.prompt.facts[name] for name in ("task", "image", "label")), row.text)
        for row in rows
    )


def mm_vet_scores(rows: Sequence[Response], judge: Callable[[str, str, str], float]) -> Figures:
    """Compute the scores of MM-Vet with a custom judge, in percent.

    W. Yu et al., "MM-Vet: Evaluating large multimodal models for integrated capabilities", 2023.
    The official judge is a language model behind the server that takes the submission.

    Args:
        rows: responses to the questions of MM-Vet, at least one.
        judge: function from question, right answer and answer of the model to a score in [0, 1].

    Returns:
        `total`, and for each capability the mean over the questions that need it.

    Raises:
        ValueError: a score is out of range.
    """
    facts, scores = [row.prompt.facts for row in rows], []
    for row, own in zip(rows, facts, strict=True):
        score = judge(own["question"], own["answers"][0], row.text)
        if not 0 <= score <= 1:
            raise ValueError(f"judge: expected a score in [0, 1], got {score}")
        scores.append(score)
    found = Figures()
    table = found.table(units_of(rows))
    table.mean("total", scores, "mean score of the judge, percent", scale=100)
    for name in dict.fromkeys(name for own in facts for name in own["capabilities"]):
        needs = [name in own["capabilities"] for own in facts]
        table.mean(name, scores, f"mean score of questions that need {name}", needs, 100)
    return found


def _masks(rows: Sequence[Response]) -> Figures:
    """Compute the IoU metrics of all phrases; ignored pixels are removed from predicted masks."""
    score = SegmentationScore()
    for row in rows:
        target = row.prompt.target
        mask = np.zeros_like(target) if row.mask is None else row.mask
        if "ignored" in row.prompt.facts:
            mask = mask & ~decode_rle(row.prompt.facts["ignored"])
        score.add(mask, target)
    return score.figures(units_of(rows))


def _reasons(rows: Sequence[Response]) -> Figures:
    """Compute the IoU metrics of ReasonSeg, and those of short (phrases) and long queries alone."""
    found = _masks(rows)
    for kind, is_sentence in (("short", False), ("long", True)):
        own = [row for row in rows if row.prompt.facts["is_sentence"] == is_sentence]
        if own:
            found.include(_masks(own), kind)
    return found


def _answers_by_number(rows: Sequence[Response]) -> list[dict[str, Any]]:
    return [{"question_id": row.prompt.facts["question_id"], "answer": row.text} for row in rows]


def _mm_vet_submission(rows: Sequence[Response]) -> dict[str, str]:
    return {row.prompt.facts["question_id"]: row.text for row in rows}


def _gqa_submission(rows: Sequence[Response]) -> list[dict[str, Any]]:
    return [
        {"questionId": row.prompt.facts["question_id"], "prediction": bare_answer(row.text)}
        for row in rows
    ]


def _aokvqa_submission(rows: Sequence[Response]) -> dict[str, dict[str, str]]:
    return {
        row.prompt.facts["question_id"]: {"direct_answer": bare_answer(row.text)} for row in rows
    }


def _choice_submission(rows: Sequence[Response]) -> dict[str, dict[str, str]]:
    found = {}
    for row in rows:
        number = choice_of(row.text, row.prompt.facts["choices"])
        choice = row.text if number is None else row.prompt.facts["choices"][number]
        found[row.prompt.facts["question_id"]] = {"multiple_choice": choice}
    return found


def _shapes(path: str | Path, split: str | None = None) -> Dataset:
    """Return the held-out conversations of a run from its YAML file."""
    path = Path(path)
    values = read_yaml(path)
    import_modules(values.get("imports", []), path.parent)
    held_out = values.get("held_out", {"samples": 256})
    return from_plain(DataSettings, held_out, "held_out.").build()


def _shapes_generation(path: Path) -> dict[str, Any]:
    generation = read_yaml(path).get("generation", {})
    return dataclasses.asdict(from_plain(GenerationSettings, generation, "generation."))


def _known(row: Response, name: str) -> bool:
    return row.prompt.facts[name] not in (None, [])


_ANSWERS = {"answers": "answers"}
_EDITS = {"image_metrics": edit_metrics}
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
    "gqa": Benchmark(READERS["gqa"], gqa_metrics, "testdev_balanced", _gqa_submission, **_ANSWERS),
    "flickr30k": Benchmark(READERS["flickr30k"], caption_metrics, "test"),
    "coco-captions": Benchmark(READERS["coco-captions"], caption_metrics, "val2017"),
    "coco-karpathy": Benchmark(READERS["coco-karpathy"], caption_metrics, "test"),
    "coco-panoptic": Benchmark(
        READERS["coco-panoptic"], None, "val2017", tokenizer=cluster_metrics
    ),
    "imagenet-probe": Benchmark(ProbeImages, None, tokenizer=probe_metrics),
    "imagenet-zero-shot": Benchmark(
        ZeroShotImages, None, "val", tokenizer=zero_shot_metrics, networks=True
    ),
    **{
        f"{reader}-{split}": Benchmark(READERS[reader], _pope, split)
        for reader in ("pope", "pope-aokvqa", "pope-gqa")
        for split in ("random", "popular", "adversarial")
    },
    "mme": Benchmark(READERS["mme"], _mme),
    "mm-vet": Benchmark(READERS["mm-vet"], None, None, _mm_vet_submission),
    "refcoco": Benchmark(READERS["refcoco"], _masks, "val"),
    "refcoco+": Benchmark(READERS["refcoco+"], _masks, "val"),
    "refcocog": Benchmark(READERS["refcocog"], _masks, "val"),
    "refcocog-google": Benchmark(READERS["refcocog-google"], _masks, "val"),
    "reasonseg": Benchmark(READERS["reasonseg"], _reasons),
    "coco-generation": Benchmark(
        partial(READERS["coco-captions"], draw=True),
        None,
        "val2014",
        image_metrics=generation_metrics,
    ),
    "instructpix2pix": Benchmark(READERS["instructpix2pix"], None, "train", **_EDITS),
    "magicbrush": Benchmark(READERS["magicbrush"], None, "test", **_EDITS),
    "magicbrush-multi-turn": Benchmark(READERS["magicbrush"], None, "test", chained=True, **_EDITS),
    "evr": Benchmark(READERS["evr"], None, "test", **_EDITS),
    "ma5k": Benchmark(READERS["ma5k"], None, "test", **_EDITS),
    "reconstruction": Benchmark(open_images, None, tokenizer=reconstruction_metrics, networks=True),
    "shapes-world": Benchmark(_shapes, shapes_metrics, blind=True, generation=_shapes_generation),
    "shapes-world-ceiling": Benchmark(_shapes, None, tokenizer=ceiling_metrics),
}
