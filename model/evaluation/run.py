"""Run of a benchmark: generates and stores the responses, and computes the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from setokim.data import BrokenSampleError, Dataset
from setokim.evaluation.answer_log import FILE, AnswerLog
from setokim.evaluation.benchmarks import Benchmark
from setokim.evaluation.edit_chains import final_turns, waves
from setokim.evaluation.image_networks import ImageNetworks
from setokim.evaluation.prompting import (
    Prompt,
    Response,
    batches_of,
    generate_responses,
    prompts_of,
)
from setokim.evaluation.readable import Readable
from setokim.utils.files import write_file
from setokim.utils.json_text import to_json
from setokim.vlm.generation_config import SetokimGenerationConfig
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor

METRICS = "metrics.json"
SUBMISSION = "submission.json"


class ScoringError(RuntimeError):
    """Error for metrics that cannot be computed; all answers are kept."""


def run_benchmark(
    benchmark: Benchmark,
    dataset: Dataset,
    model: SetokimModel,
    processor: SetokimProcessor,
    config: SetokimGenerationConfig,
    log: AnswerLog,
    folder: Path,
    show: Callable[[int], None] = lambda number: None,
    networks: ImageNetworks | None = None,
    allow_missing: bool = False,
    samples: int | None = None,
) -> dict[str, float]:
    """Generate the responses missing from the log, and write metrics and submission.

    Args:
        benchmark: benchmark with its prompts and metrics.
        dataset: data set of the benchmark, at least one sample.
        model: model in evaluation mode.
        processor: tokenizer and image processor of the model.
        config: options of generation.
        log: log of responses; a killed run resumes from it.
        folder: folder of metrics.json and, if the benchmark has one, submission.json.
        show: callback for the number of samples read so far.
        networks: networks that score generated images; metrics of absent ones are left out.
        allow_missing: permission to go on when more than 1 % of the samples cannot be read.
        samples: number of samples, from the first on; None for all.

    Returns:
        Metrics. `samples` is the number of answered samples, and `broken` the number of unreadable
        ones, which do not count. A data set without public answers has no other metrics. For
        generated images, `undrawn` is the number of responses without one; each counts as a black
        image.

    Raises:
        AnswerLogError: a prompt differs from the one that the log has a response to.
        ImportError: a metric needs a package that is not installed.
        OSError: a result cannot be written.
        ScoringError: no sample can be scored, or metrics fail; all answers are kept.
        TooManyBrokenError: too many samples cannot be read; only answers are written.
    """
    number = len(dataset) if samples is None else min(samples, len(dataset))
    readable = Readable(dataset, log, allow_missing)
    if benchmark.tokenizer is not None:
        metrics = benchmark.tokenizer(model.setok, readable, number, show)
        _check_judged(metrics["samples"], readable)
        _write(folder / METRICS, metrics)
        return metrics
    prompts = partial(_prompts, benchmark, readable, number, log, show)
    for wave in waves(prompts, readable, log) if benchmark.chained else (prompts(),):
        for start, batch in batches_of(wave):
            # The log may have the beginning of a batch.
            rest = [one for one in batch if one not in log]
            if rest:
                start += len(batch) - len(rest)
                log.add(generate_responses(model, processor, rest, config, start))
    rows = final_turns(log.rows) if benchmark.chained else log.rows
    if benchmark.image_metrics is not None:
        # The reference is in the data set only, and may have become unreadable since the answer.
        rows = [row for row in rows if row.prompt.number not in readable.broken]
    answered = {row.prompt.number for row in rows}
    _check_judged(len(answered), readable)
    try:
        if benchmark.submission is not None:
            _write(folder / SUBMISSION, benchmark.submission(rows))
        metrics = _metrics(benchmark, dataset, rows, networks)
    except (ImportError, OSError):
        raise
    except Exception as error:
        # With any other error, hours of answers must not look lost.
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
    rows: Sequence[Response],
    networks: ImageNetworks | None,
) -> dict[str, float]:
    if benchmark.image_metrics is not None:
        pairs = _pairs(rows, dataset)
        metrics = benchmark.image_metrics(pairs, ImageNetworks() if networks is None else networks)
        return metrics | {"undrawn": sum(row.generated is None for row in rows)}
    return benchmark.metrics(rows) if benchmark.has_answers(rows) else {}


def _prompts(
    benchmark: Benchmark,
    dataset: Readable,
    number: int,
    log: AnswerLog,
    show: Callable[[int], None],
) -> Iterator[Prompt]:
    for index in range(number):
        try:
            sample = dataset[index]
        except BrokenSampleError:
            # `Readable` has logged the sample.
            pass
        else:
            for one in prompts_of(index, sample, benchmark.blind):
                log.recall(one)
                yield one
        show(index + 1)


def _pairs(
    rows: Iterable[Response], dataset: Dataset
) -> Iterator[tuple[Image.Image, Image.Image, str | None]]:
    """Yield each generated image, its reference and, if known, the caption of the reference."""
    for row in rows:
        sample = dataset[row.prompt.number]
        answer = sample.messages[2 * row.prompt.turn + 1]
        reference = next(part["image"] for part in answer["content"] if part["type"] == "image")
        image = Image.new("RGB", reference.size) if row.generated is None else row.image
        # Not from the log: the kind of caption may have been chosen after the responses.
        yield image, reference, sample.facts["caption"]


def _write(path: Path, value: Any) -> None:
    write_file(path, to_json(value, indent=2) + "\n")
