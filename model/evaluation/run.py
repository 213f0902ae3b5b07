"""Run of a benchmark: generates and stores the responses, and computes the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from setokim.data import BrokenSampleError, Dataset
from setokim.evaluation.answer_log import FILE, AnswerLog
from setokim.evaluation.answering import Answer, Batch
from setokim.evaluation.batching import batches_of
from setokim.evaluation.benchmarks import Benchmark
from setokim.evaluation.edit_chains import final_turns, waves
from setokim.evaluation.figure_files import Scored, write_figures
from setokim.evaluation.figures import Figures
from setokim.evaluation.image_networks import ImageNetworks
from setokim.evaluation.prompting import (
    Prompt,
    Response,
    generate_responses,
    in_order,
    prompts_of,
)
from setokim.evaluation.readable import Readable
from setokim.evaluation.units import units_of
from setokim.tokenizer.modeling_setok import SetokModel
from setokim.utils.files import write_file
from setokim.utils.json_text import to_json
from setokim.vlm.generation_config import SetokimGenerationConfig
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor

SUBMISSION = "submission.json"


class ScoringError(RuntimeError):
    """Error for metrics that cannot be computed; all answers are kept."""


def run_benchmark(
    benchmark: Benchmark,
    dataset: Dataset,
    model: SetokimModel | SetokModel,
    processor: SetokimProcessor | None,
    config: SetokimGenerationConfig,
    log: AnswerLog,
    folder: Path,
    show: Callable[[int], None] = lambda number: None,
    networks: ImageNetworks | None = None,
    answer: Answer | None = None,
    allow_missing: bool = False,
    samples: int | None = None,
    name: str = "",
    split: str | None = None,
) -> Figures:
    """Generate the responses missing from the log, and write metrics and submission.

    Args:
        benchmark: benchmark with its prompts and metrics.
        dataset: data set of the benchmark, at least one sample.
        model: model in evaluation mode; for benchmarks of the tokenizer, the tokenizer is enough.
        processor: tokenizer and image processor of the model; None for a tokenizer.
        config: options of generation.
        log: log of responses; a killed run resumes from it.
        folder: folder of the files of `write_figures` and, if the benchmark has one, of
            submission.json.
        show: callback for the number of samples read so far.
        networks: networks that score generated images; metrics of absent ones are left out.
        answer: function that answers batches; None for the model in this process.
        allow_missing: permission to go on when more than 1 % of the samples cannot be read.
        samples: number of samples, from the first on; None for all.
        name: name of the benchmark, for the files.
        split: name of the split, for the files.

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
    if benchmark.tokenizer is not None:
        readable = Readable(dataset, log.add_broken, allow_missing)
        setok = model if isinstance(model, SetokModel) else model.setok
        given = (networks,) if benchmark.networks else ()
        found = Figures.of(benchmark.tokenizer(setok, readable, number, show, *given))
        _check_judged(found["samples"], readable)
        counts = found["samples"], len(dataset) - number, found["broken"]
        write_figures(folder, found, Scored(name, split, *counts))
        return found
    found_broken: list[tuple[int, str, str]] = []
    # Logged with the batches, whose answers may come later than the samples after them.
    readable = Readable(dataset, lambda *one: found_broken.append(one), allow_missing)
    prompts = partial(_prompts, benchmark, readable, number, log, show)
    for wave in waves(prompts, readable, log) if benchmark.chained else (prompts(),):
        batches = _Batches(wave, log, found_broken)
        for batch, responses in (answer or in_this_process(model, processor, config))(batches):
            for one in batch.broken:
                log.add_broken(*one)
            # The log may have the beginning of a batch. All of it is answered again, since the
            # rounding of a row depends on the others.
            log.add([row for row in responses if row.prompt not in log])
        for one in found_broken:
            log.add_broken(*one)
        found_broken.clear()
        batches.finish()
    # Intervals depend on the order of the units, and the log's is that of the batches.
    rows = in_order(final_turns(log.rows) if benchmark.chained else log.rows)
    if benchmark.image_metrics is not None:
        # The reference is in the data set only, and may have become unreadable since the answer.
        rows = [row for row in rows if row.prompt.number not in readable.broken]
    answered = {row.prompt.number for row in rows}
    _check_judged(len(answered), readable)
    try:
        if benchmark.submission is not None:
            _write(folder / SUBMISSION, benchmark.submission(rows))
        found = Figures.of(_metrics(benchmark, dataset, rows, networks))
    except (ImportError, OSError):
        raise
    except Exception as error:
        # With any other error, hours of answers must not look lost.
        reason = f"{type(error).__name__}: {error}"
        raise ScoringError(f"{folder / FILE} has all answers, no metrics: {reason}") from error
    broken = len(readable.broken - answered)
    found.constant("samples", len(answered), "answered samples")
    found.constant("broken", broken, "samples that cannot be read")
    counts = len(answered), len(dataset) - len(answered) - broken, broken
    write_figures(folder, found, Scored(name, split, *counts))
    return found


def in_this_process(
    model: SetokimModel, processor: SetokimProcessor, config: SetokimGenerationConfig
) -> Answer:
    """Return the function that answers batches in this process."""

    def answer(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Sequence[Response]]]:
        for batch in batches:
            yield batch, generate_responses(model, processor, batch.prompts, config, batch.indices)

    return answer


class _Batches:
    """Batches that the log has not yet, with the broken samples before each.

    An error of reading ends the iteration, so that the batches before it are still answered.

    Args:
        prompts: prompts in order.
        log: log of responses.
        found_broken: broken samples so far, which the next batch takes.
    """

    def __init__(
        self,
        prompts: Iterable[Prompt],
        log: AnswerLog,
        found_broken: list[tuple[int, str, str]],
    ):
        self._prompts, self._log, self._broken = prompts, log, found_broken
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[Batch]:
        number = 0
        try:
            for indices, prompts in batches_of(self._prompts):
                if not all(one in self._log for one in prompts):
                    broken = tuple(self._broken)
                    self._broken.clear()
                    yield Batch(number, indices, prompts, broken)
                    number += 1
        except Exception as error:
            self._error = error

    def finish(self) -> None:
        """Raise the error of reading, if there was one."""
        if self._error is not None:
            raise self._error


def _check_judged(number: int, readable: Readable) -> None:
    summary = readable.finish()
    if not number:
        raise ScoringError(f"no sample can be judged: {summary}")


def _metrics(
    benchmark: Benchmark,
    dataset: Dataset,
    rows: Sequence[Response],
    networks: ImageNetworks | None,
) -> Mapping[str, float]:
    if benchmark.image_metrics is not None:
        pairs = _pairs(rows, dataset)
        networks = ImageNetworks() if networks is None else networks
        found = Figures.of(benchmark.image_metrics(pairs, networks))
        found.rename_units(units_of(rows))
        undrawn = sum(row.generated is None for row in rows)
        found.constant("undrawn", undrawn, "answers without an image, each a black one")
        return found
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
