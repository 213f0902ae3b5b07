"""Answers by the processes of torchrun: rank 0 reads and writes, all ranks answer.

In each round rank 0 hands one batch to every rank and collects their answers. A rank that is killed
ends the run, as torchrun ends the others; the same command resumes it.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any

import torch.distributed as dist

from setokim.evaluation.answering import Answer, Batch, responses_of
from setokim.evaluation.prompting import Response
from setokim.utils.distributed import rank, world_size
from setokim.vlm.generation_config import SetokimGenerationConfig

# A round may take hours, and the ranks also wait while rank 0 scores.
_PATIENCE = timedelta(days=30)

# Function from options of generation and a batch to what `answer_batch` returns.
Answerer = Callable[[SetokimGenerationConfig, Batch], list[tuple]]


def is_launched() -> bool:
    """Return whether torchrun has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextlib.contextmanager
def joined() -> Iterator[int]:
    """Join the other ranks and leave them; yields the index of this process on its machine."""
    # Only small objects of the CPU are exchanged, also between processes with GPUs.
    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield int(os.environ.get("LOCAL_RANK", rank()))
    finally:
        # Ends the threads of the group. One that releases a tensor while Python ends aborts the
        # process.
        dist.destroy_process_group()


class Ranks:
    """All ranks, as rank 0 uses them."""

    def __init__(self):
        self._in_round = False

    def using(self, answerer: Answerer, config: SetokimGenerationConfig) -> Answer:
        """Return the function that answers batches.

        Args:
            answerer: function that answers a batch in this process.
            config: options of generation.
        """

        def answer(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Sequence[Response]]]:
            batches = iter(batches)
            while group := list(islice(batches, world_size())):
                self._in_round = True
                idle = world_size() - len(group)
                given = [(config, one) for one in group] + [(config, None)] * idle
                outcomes = _answer(answerer, _scatter(given))
                self._in_round = False
                for number, (_, error) in enumerate(outcomes):
                    if error is not None:
                        raise RuntimeError(f"rank {number}: {error}")
                for batch, (said, _) in zip(group, outcomes, strict=False):
                    yield batch, responses_of(batch, said)

        return answer

    def end(self, code: int) -> None:
        """End the other ranks with an exit code; they end by themselves if a round was cut."""
        if not self._in_round:
            _scatter([code] * world_size())


def serve(answerer: Answerer) -> int:
    """Answer the batches of rank 0 in another rank, until it ends; return its exit code."""
    while not isinstance(given := _scatter(None), int):
        _answer(answerer, given)
    return given


def _answer(answerer: Answerer, given: tuple) -> list[tuple[list[tuple] | None, str | None]]:
    """Answer this rank's batch; return the answers or errors of all ranks on rank 0."""
    config, batch = given
    try:
        own = (None if batch is None else answerer(config, batch)), None
    except Exception:
        # Every rank must reach the exchange.
        own = None, traceback.format_exc()
    found: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(own, found)
    return found or []


def _scatter(values: list[Any] | None) -> Any:
    found: list[Any] = [None]
    dist.scatter_object_list(found, values)
    return found[0]
