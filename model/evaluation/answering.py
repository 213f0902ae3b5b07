"""Answers to batches of prompts: in this process, in worker processes, or by torchrun's ranks.

Batches are formed in one process and answered as they are, so that their composition, on which
rounding depends, is that of a run in one process. Results come in the order of the batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from setokim.corpus.engines import (
    EngineOptions,
    PartFailure,
    RunParts,
    UnbuiltWorkerError,
    find_engine,
)
from setokim.evaluation.prompting import Prompt, Response, generate_responses
from setokim.utils.pretrained import load_whole
from setokim.vlm.generation_config import SetokimGenerationConfig
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor

# Batches for each process that are read, or answered and not yet written: enough for a process
# to go on while another repeats a batch.
_BATCHES_AHEAD = 2


class AnsweringError(RuntimeError):
    """Error for processes that are killed time and again; all earlier answers are kept."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts that the model answers together.

    Attributes:
        number: index of the batch among those of the run.
        indices: index of each prompt among those of its part, see `generate_responses`.
        prompts: prompts, at least one.
        broken: index, source and reason of each sample found broken since the batch before.
    """

    number: int
    indices: Sequence[int]
    prompts: Sequence[Prompt]
    broken: Sequence[tuple[int, str, str]] = ()

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"batch {self.number}"


# Function from batches to each batch with its responses, in order. It may read batches ahead.
Answer = Callable[[Iterable[Batch]], Iterator[tuple[Batch, Sequence[Response]]]]


@dataclass(frozen=True)
class AnswererFactory:
    """Builds the function that answers batches in a worker process; can be pickled.

    Attributes:
        model: folder of the model.
        config: options of generation.
        trust_remote_code: permission to run Python code in the folder.
        threads: number of torch's threads, on which rounding on a CPU depends.
    """

    model: Path
    config: SetokimGenerationConfig
    trust_remote_code: bool
    threads: int

    def __call__(self, device: str) -> Callable[[Batch], dict[str, Any]]:
        """Load the model on a device."""
        torch.set_num_threads(self.threads)
        model = load_whole(SetokimModel, self.model).to(device).eval()
        processor = SetokimProcessor.from_pretrained(self.model, self.trust_remote_code)
        return lambda batch: {"said": answer_batch(model, processor, self.config, batch)}


def answer_batch(
    model: SetokimModel,
    processor: SetokimProcessor,
    config: SetokimGenerationConfig,
    batch: Batch,
) -> list[tuple]:
    """Return text, image and mask of each response to a batch, without the prompts' images."""
    found = generate_responses(model, processor, batch.prompts, config, batch.indices)
    return [(one.text, one.generated, one.mask) for one in found]


def responses_of(batch: Batch, said: Sequence[tuple]) -> list[Response]:
    """Return the responses that `answer_batch` shortened."""
    return [Response(one, *rest) for one, rest in zip(batch.prompts, said, strict=True)]


def in_processes(
    factory: Callable[[str], Callable[[Batch], dict[str, Any]]],
    options: EngineOptions,
    run_parts: RunParts | None = None,
) -> Answer:
    """Return a function that answers batches in worker processes of this machine.

    The batch of a killed process is answered by a new one. Batches are held until all earlier ones
    are done.

    Args:
        factory: picklable function from a device to the function that answers batches.
        options: number of processes, their devices and threads.
        run_parts: engine that runs the processes; None for that of this machine.
    """

    def answer(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Sequence[Response]]]:
        run = find_engine("local") if run_parts is None else run_parts
        window = _Window(batches, _BATCHES_AHEAD * options.local_workers)
        done: dict[int, tuple[Batch, Sequence[Response]]] = {}
        following = 0
        try:
            for batch, report in run(factory, window, options):
                if isinstance(report, PartFailure):
                    raise AnsweringError(f"{batch.name}: {report.reason}")
                done[batch.number] = batch, responses_of(batch, report["said"])
                while following in done:
                    yield done.pop(following)
                    following += 1
                    window.release()
        except UnbuiltWorkerError as error:
            # Most often memory is too short for so many models.
            raise AnsweringError(f"{error}; fewer workers need less memory") from error

    return answer


class _Window:
    """Iterator over batches that pauses while too many of them are unfinished.

    Args:
        batches: batches.
        size: max number of unfinished batches.
    """

    def __init__(self, batches: Iterable[Batch], size: int):
        self._batches, self._size = iter(batches), size
        self._unfinished = 0

    def __iter__(self) -> _Window:
        return self

    def __next__(self) -> Batch:
        """Return the next batch; StopIteration may be temporary."""
        if self._unfinished == self._size:
            raise StopIteration
        batch = next(self._batches)
        self._unfinished += 1
        return batch

    def release(self) -> None:
        """Note that a batch is finished."""
        self._unfinished -= 1


@dataclass
class Timed:
    """An `Answer` that measures its throughput.

    Attributes:
        answer: function that answers.
        answers: number of answers so far.
        seconds: time of the last run in seconds: reading, answering and writing, and the start of
            processes.
    """

    answer: Answer
    answers: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)

    def __call__(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Sequence[Response]]]:
        """Answer batches as `answer` does."""
        start = time.perf_counter()
        for batch, responses in self.answer(batches):
            self.answers += len(responses)
            yield batch, responses
            self.seconds = time.perf_counter() - start
