"""Runs a benchmark: asks, keeps the answers, and judges them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from PIL import Image

from setokim.benchmarks.answer_log import AnswerLog
from setokim.benchmarks.asking import Answered, Asked, ask, batches_of, questions_of
from setokim.benchmarks.clusters import cluster_figures
from setokim.benchmarks.picture_networks import PictureNetworks
from setokim.benchmarks.suites import Benchmark
from setokim.data import BrokenSampleError, Dataset
from setokim.modeling_setokim import SetokimModel
from setokim.processing_setokim import SetokimProcessor
from setokim.training.instruct_settings import GenerationSettings

FIGURES = "metrics.json"
SUBMISSION = "submission.json"


def run_benchmark(
    benchmark: Benchmark,
    dataset: Dataset,
    model: SetokimModel,
    processor: SetokimProcessor,
    settings: GenerationSettings,
    log: AnswerLog,
    folder: Path,
    show: Callable[[int], None] = lambda number: None,
    networks: PictureNetworks | None = None,
) -> dict[str, float]:
    """Asks what the log has no answer to, and writes figures and submission.

    Args:
        benchmark: what is asked and judged.
        dataset: of the benchmark.
        model: in evaluation mode.
        processor: of the model.
        settings: how to generate, and how many samples.
        log: of answers; a run that was killed goes on with what it has.
        folder: for metrics.json and, if the benchmark has one, submission.json.
        show: called with the number of samples read so far.
        networks: that judge what is drawn; those that are not given leave out their figures.

    Returns:
        Figures; `samples` were answered, and `broken` could not be read, which count as if they
        were not there. A data set without public answers has no others. Of drawn pictures
        `undrawn` says how many were not: a black one stands for each.
    """
    number = len(dataset) if settings.samples is None else min(settings.samples, len(dataset))
    if benchmark.clusters:
        figures = cluster_figures(model.setok, dataset, number, show)
        _write(folder / FIGURES, figures)
        return figures
    asked = _questions(benchmark, dataset, number, log, show)
    for start, batch in batches_of(asked):
        # Of a batch that was cut off the beginning is there.
        rest = [one for one in batch if one not in log]
        if rest:
            log.add(ask(model, processor, rest, settings, start + len(batch) - len(rest)))
    figures: dict[str, float] = {}
    if log.rows and benchmark.has_answers(log.rows):
        figures = benchmark.figures(log.rows)
    if benchmark.pictures is not None:
        pairs = _pairs(log.rows, dataset)
        figures = benchmark.pictures(pairs, PictureNetworks() if networks is None else networks)
        figures["undrawn"] = sum(row.drawn is None for row in log.rows)
    answered = len({row.asked.number for row in log.rows})
    figures |= {"samples": answered, "broken": len(log.broken)}
    _write(folder / FIGURES, figures)
    if benchmark.submission is not None:
        _write(folder / SUBMISSION, benchmark.submission(log.rows))
    return figures


def _questions(
    benchmark: Benchmark,
    dataset: Dataset,
    number: int,
    log: AnswerLog,
    show: Callable[[int], None],
) -> Iterator[Asked]:
    for index in range(number):
        try:
            sample = dataset[index]
        except BrokenSampleError as error:
            log.add_broken(index, error.source, error.reason)
        else:
            yield from questions_of(index, sample, benchmark.blind)
        show(index + 1)


def _pairs(
    rows: Iterable[Answered], dataset: Dataset
) -> Iterator[tuple[Image.Image, Image.Image, str | None]]:
    """For each row what was drawn, what was wanted, and what that shows in words, if known."""
    for row in rows:
        answer = dataset[row.asked.number].messages[2 * row.asked.turn + 1]
        wanted = next(part["image"] for part in answer["content"] if part["type"] == "image")
        drawn = Image.new("RGB", wanted.size) if row.drawn is None else row.picture
        yield drawn, wanted, row.asked.facts["caption"]


def _write(path: Path, value) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
