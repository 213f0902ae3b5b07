"""Scoring of answers that are in a file already, without a model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from setokim.data import BrokenSampleError, Dataset
from setokim.data.readers.files import blank_images
from setokim.evaluation.benchmarks import Benchmark
from setokim.evaluation.figures import Figures
from setokim.evaluation.predictions.matching import Matched, match
from setokim.evaluation.predictions.prediction import Prediction, PredictionError
from setokim.evaluation.predictions.samples import Samples
from setokim.evaluation.prompting import Prompt, Response, prompts_of

# Tasks whose metrics need the texts of a sample only.
_OF_TEXTS = ("vqa", "caption")
# Samples that are tried for a readable one.
_LOOKED_AT = 100
# Max fraction of missing and of unknown ones, as of broken samples in an evaluation.
_MAX_SHARE = 0.01
_NAMED = 5


@dataclass(frozen=True, eq=False)
class Questions:
    """Questions of a benchmark.

    Attributes:
        prompts: prompts in order, without their images.
        broken: source and reason of each sample that cannot be read.
    """

    prompts: list[Prompt]
    broken: list[str]


def read_questions(benchmark: Benchmark, dataset: Dataset, samples: int | None = None) -> Questions:
    """Read the questions of a benchmark; where texts are all they have, no image is opened.

    Args:
        benchmark: benchmark with metrics of texts or masks.
        dataset: data set of the benchmark.
        samples: number of samples, from the first on; None for all.

    Raises:
        PredictionError: no sample can be read.
    """
    number = len(dataset) if samples is None else min(samples, len(dataset))
    prompts: list[Prompt] = []
    broken: list[str] = []
    with blank_images() if _is_of_texts(dataset) else contextlib.nullcontext():
        for index in range(number):
            try:
                found = prompts_of(index, dataset[index], benchmark.blind)
            except BrokenSampleError as error:
                broken.append(str(error))
            else:
                prompts += [_with_texts_only(prompt) for prompt in found]
    if not prompts:
        raise PredictionError(f"data: expected a readable sample, got {'; '.join(broken[:1])}")
    return Questions(prompts, broken)


def check_limits(matched: Matched, broken: int, allow_missing: bool, allow_unknown: bool) -> None:
    """Check that a file answers these questions, and nearly all of them.

    Args:
        matched: predictions with their samples.
        broken: number of samples that cannot be read.
        allow_missing: permission to go on with more than 1 % missing.
        allow_unknown: permission to go on with more than 1 % unknown.

    Raises:
        PredictionError: more are missing or unknown than allowed.
    """
    missing = len(matched.missing) + broken
    total = len(matched.rows) + missing
    if missing > _MAX_SHARE * total and not allow_missing:
        text = f"{missing} of {total} have no prediction{_named(describe_missing(matched))}"
        raise PredictionError(
            f"predictions: expected one for each question, got {text}; --allow-missing goes on "
            "all the same"
        )
    unknown = len(matched.unknown)
    total = len(matched.rows) + unknown
    if unknown > _MAX_SHARE * total and not allow_unknown:
        text = f"{unknown} of {total} for no question{_named(describe_unknown(matched))}"
        raise PredictionError(
            f"predictions: expected questions of the data set, got {text}; --allow-unknown goes "
            "on all the same"
        )


def describe_missing(matched: Matched) -> list[str]:
    """Return the sources of the first questions without prediction."""
    return [prompt.source for prompt in matched.missing[:_NAMED]]


def describe_unknown(matched: Matched) -> list[str]:
    """Return the ids and rows of the first predictions without question."""
    return [f"{one.ids[matched.kind]} in {one.source}" for one in matched.unknown[:_NAMED]]


def score(
    benchmark: Benchmark,
    questions: Questions,
    predictions: Sequence[Prediction],
    allow_missing: bool = False,
    allow_unknown: bool = False,
) -> tuple[Matched, Figures]:
    """Score predictions as `setok eval` scores the answers of a model.

    Args:
        benchmark: benchmark with metrics of texts or masks.
        questions: questions of the benchmark.
        predictions: predictions of a file, at least one.
        allow_missing: permission to go on with more than 1 % missing.
        allow_unknown: permission to go on with more than 1 % unknown.

    Returns:
        The predictions with their samples, and their metrics, none for a split without public
        answers. `samples` is the number of answered samples, `broken` of unreadable ones,
        `missing`, `unknown` and `duplicates` of questions without prediction, predictions without
        question, and rows that repeat another. `missing` and `broken` ones do not count.

    Raises:
        PredictionError: the predictions are not those of the benchmark, or too few.
    """
    matched = match(predictions, Samples(questions.prompts))
    check_limits(matched, len(questions.broken), allow_missing, allow_unknown)
    found = Figures()
    if benchmark.has_answers(matched.rows):
        assert benchmark.metrics is not None
        found = Figures.of(benchmark.metrics(matched.rows))
    answered = len({row.prompt.number for row in matched.rows})
    found.constant("samples", answered, "answered samples")
    found.constant("broken", len(questions.broken), "samples that cannot be read")
    found.constant("missing", len(matched.missing), "questions without an answer")
    found.constant("unknown", len(matched.unknown), "answers without a question")
    found.constant("duplicates", matched.duplicates, "rows that repeat another")
    return matched, found


def with_missing(questions: Questions, rows: Sequence[Response]) -> list[Response]:
    """Return responses to all questions, empty ones to those without."""
    known = {id(row.prompt): row for row in rows}
    return [known.get(id(prompt), Response(prompt, "")) for prompt in questions.prompts]


def _is_of_texts(dataset: Dataset) -> bool:
    """Return whether the first readable sample has a task of texts only."""
    with blank_images():
        for index in range(min(_LOOKED_AT, len(dataset))):
            try:
                return dataset[index].task in _OF_TEXTS
            except BrokenSampleError:
                continue
    return False


def _with_texts_only(prompt: Prompt) -> Prompt:
    messages = [
        message | {"content": [part for part in message["content"] if part["type"] == "text"]}
        for message in prompt.messages
    ]
    return dataclasses.replace(prompt, messages=messages)


def _named(names: Sequence[str]) -> str:
    return f", such as {', '.join(names)}" if names else ""
