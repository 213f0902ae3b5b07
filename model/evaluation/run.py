"""Runs a benchmark: asks, keeps the answers, and judges them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from setokim.data import BrokenSampleError, Dataset
from setokim.evaluation.answer_log import FILE, AnswerLog, to_json
from setokim.evaluation.asking import Answered, Asked, ask, batches_of, questions_of
from setokim.evaluation.benchmarks import Benchmark
from setokim.evaluation.clusters import cluster_figures
from setokim.evaluation.image_networks import PictureNetworks
from setokim.evaluation.readable import Readable
from setokim.training.stage2.settings import GenerationSettings
from setokim.utils.files import write_file
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor

FIGURES = "metrics.json"
SUBMISSION = "submission.json"


class ScoringError(RuntimeError):
    """There are no metrics of the answers, which are kept; the message says why."""


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
    allow_missing: bool = False,
) -> dict[str, float]:
    """Asks what the log has no answer to, and writes figures and submission.

    Args:
        benchmark: what is asked and judged.
        dataset: of the benchmark, at least one sample.
        model: in evaluation mode.
        processor: of the model.
        settings: how to generate, and how many samples.
        log: of answers; a run that was killed goes on with what it has.
        folder: for metrics.json and, if the benchmark has one, submission.json.
        show: called with the number of samples read so far.
        networks: that judge what is drawn; those that are not given leave out their figures.
        allow_missing: whether to go on when more than 1 % of the samples cannot be read.

    Returns:
        Figures; `samples` were answered, and `broken` could not be read, which count as if they
        were not there. A data set without public answers has no others. Of drawn pictures
        `undrawn` says how many were not: a black one stands for each.

    Raises:
        AnswerLogError: a question is not the one that the log has an answer to.
        ImportError: a metric needs a package that is not installed.
        OSError: a result cannot be written.
        ScoringError: no sample can be judged, or metrics fail; all answers are kept.
        TooManyBrokenError: too many samples cannot be read; nothing but answers is written.
    """
    number = len(dataset) if settings.samples is None else min(settings.samples, len(dataset))
    readable = Readable(dataset, log, allow_missing)
    if benchmark.clusters:
        figures = cluster_figures(model.setok, readable, number, show)
        _check_judged(figures["samples"], readable)
        _write(folder / FIGURES, figures)
        return figures
    asked = _questions(benchmark, readable, number, log, show)
    for start, batch in batches_of(asked):
        # Of a batch that was cut off the beginning is there.
        rest = [one for one in batch if one not in log]
        if rest:
            log.add(ask(model, processor, rest, settings, start + len(batch) - len(rest)))
    rows = log.rows
    if benchmark.pictures is not None:
        # What was wanted is in the data set alone, and may have gone since the answer.
        rows = [row for row in rows if row.asked.number not in readable.broken]
    answered = {row.asked.number for row in rows}
    _check_judged(len(answered), readable)
    try:
        if benchmark.submission is not None:
            _write(folder / SUBMISSION, benchmark.submission(rows))
        figures = _figures(benchmark, dataset, rows, networks)
    except (ImportError, OSError):
        raise
    except Exception as error:
        # Whatever it is, hours of answers must not look lost.
        reason = f"{type(error).__name__}: {error}"
        raise ScoringError(f"{folder / FILE} has all answers, no metrics: {reason}") from error
    figures |= {"samples": len(answered), "broken": len(readable.broken - answered)}
    _write(folder / FIGURES, figures)
    return figures


def _check_judged(number: int, readable: Readable) -> None:
    summary = readable.finish()
    if not number:
        raise ScoringError(f"no sample can be judged: {summary}")


def _figures(
    benchmark: Benchmark,
    dataset: Dataset,
    rows: Sequence[Answered],
    networks: PictureNetworks | None,
) -> dict[str, float]:
    if benchmark.pictures is not None:
        pairs = _pairs(rows, dataset)
        figures = benchmark.pictures(pairs, PictureNetworks() if networks is None else networks)
        return figures | {"undrawn": sum(row.drawn is None for row in rows)}
    return benchmark.figures(rows) if benchmark.has_answers(rows) else {}


def _questions(
    benchmark: Benchmark,
    dataset: Readable,
    number: int,
    log: AnswerLog,
    show: Callable[[int], None],
) -> Iterator[Asked]:
    for index in range(number):
        try:
            sample = dataset[index]
        except BrokenSampleError:
            # The data set has noted it.
            pass
        else:
            for one in questions_of(index, sample, benchmark.blind):
                log.recall(one)
                yield one
        show(index + 1)


def _pairs(
    rows: Iterable[Answered], dataset: Dataset
) -> Iterator[tuple[Image.Image, Image.Image, str | None]]:
    """For each row what was drawn, what was wanted, and what that shows in words, if known."""
    for row in rows:
        sample = dataset[row.asked.number]
        answer = sample.messages[2 * row.asked.turn + 1]
        wanted = next(part["image"] for part in answer["content"] if part["type"] == "image")
        drawn = Image.new("RGB", wanted.size) if row.drawn is None else row.picture
        # As the data set has it now: which description is compared may be chosen later.
        yield drawn, wanted, sample.facts["caption"]


def _write(path: Path, value: Any) -> None:
    write_file(path, to_json(value, indent=2) + "\n")
