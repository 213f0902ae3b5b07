"""Runs a benchmark: asks the questions, stores the answers and computes the metrics."""

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
from setokim.utils.files import write_file
from setokim.vlm.generation_config import SetokimGenerationConfig
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor

METRICS = "metrics.json"
SUBMISSION = "submission.json"


class ScoringError(RuntimeError):
    """The metrics cannot be computed; all answers are kept, and the message has the reason."""


def run_benchmark(
    benchmark: Benchmark,
    dataset: Dataset,
    model: SetokimModel,
    processor: SetokimProcessor,
    config: SetokimGenerationConfig,
    log: AnswerLog,
    folder: Path,
    show: Callable[[int], None] = lambda number: None,
    networks: PictureNetworks | None = None,
    allow_missing: bool = False,
    samples: int | None = None,
) -> dict[str, float]:
    """Ask the questions without an answer in the log, and write metrics and submission.

    Args:
        benchmark: benchmark with its questions and metrics.
        dataset: data set of the benchmark, at least one sample.
        model: model in evaluation mode.
        processor: tokenizer and image processor of the model.
        config: options of generation.
        log: log of answers; a run that was killed resumes from it.
        folder: folder of metrics.json and, if the benchmark has one, submission.json.
        show: callback for the number of samples read so far.
        networks: networks that score generated images; metrics of absent ones are left out.
        allow_missing: whether the run goes on when more than 1 % of the samples cannot be read.
        samples: number of samples, from the first on; None for all.

    Returns:
        Metrics, among them `samples`, the number answered, and `broken`, the number that could not
        be read and do not count. A data set without public answers has no others. For generated
        images, `undrawn` is the number of answers without one; a black image stands for each.

    Raises:
        AnswerLogError: a question differs from the one that the log has an answer to.
        ImportError: a metric needs a package that is not installed.
        OSError: a result cannot be written.
        ScoringError: no sample can be scored, or metrics fail; all answers are kept.
        TooManyBrokenError: too many samples cannot be read; only answers are written.
    """
    number = len(dataset) if samples is None else min(samples, len(dataset))
    readable = Readable(dataset, log, allow_missing)
    if benchmark.clusters:
        metrics = cluster_figures(model.setok, readable, number, show)
        _check_judged(metrics["samples"], readable)
        _write(folder / METRICS, metrics)
        return metrics
    asked = _questions(benchmark, readable, number, log, show)
    for start, batch in batches_of(asked):
        # The log may have the beginning of a batch.
        rest = [one for one in batch if one not in log]
        if rest:
            log.add(ask(model, processor, rest, config, start + len(batch) - len(rest)))
    rows = log.rows
    if benchmark.pictures is not None:
        # The reference is in the data set alone, and may have gone since the answer.
        rows = [row for row in rows if row.asked.number not in readable.broken]
    answered = {row.asked.number for row in rows}
    _check_judged(len(answered), readable)
    try:
        if benchmark.submission is not None:
            _write(folder / SUBMISSION, benchmark.submission(rows))
        metrics = _metrics(benchmark, dataset, rows, networks)
    except (ImportError, OSError):
        raise
    except Exception as error:
        # Whatever the error is, hours of answers must not look lost.
        reason = f"{type(error).__name__}: {error}"
        raise ScoringError(f"{folder / FILE} has all answers, no metrics: {reason}") from error
    metrics |= {"samples": len(answered), "broken": len(readable.broken - answered)}
    _write(folder / METRICS, metrics)
    return metrics


def _check_judged(number: int, readable: Readable) -> None:
    summary = readable.finish()
    if not number:
        raise ScoringError(f"no sample can be judged: {summary}")


def _metrics(
    benchmark: Benchmark,
    dataset: Dataset,
    rows: Sequence[Answered],
    networks: PictureNetworks | None,
) -> dict[str, float]:
    if benchmark.pictures is not None:
        pairs = _pairs(rows, dataset)
        metrics = benchmark.pictures(pairs, PictureNetworks() if networks is None else networks)
        return metrics | {"undrawn": sum(row.drawn is None for row in rows)}
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
    """Yield the generated image, its reference and, if known, the reference's caption."""
    for row in rows:
        sample = dataset[row.asked.number]
        answer = sample.messages[2 * row.asked.turn + 1]
        reference = next(part["image"] for part in answer["content"] if part["type"] == "image")
        image = Image.new("RGB", reference.size) if row.drawn is None else row.picture
        # As the data set has it now: the kind of description may be chosen after the answers.
        yield image, reference, sample.facts["caption"]


def _write(path: Path, value: Any) -> None:
    write_file(path, to_json(value, indent=2) + "\n")
