"""What every engine takes and returns: parts, a factory of workers, options, failures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Part(Protocol):
    """A unit of work, small and picklable.

    Attributes:
        name: name of the part, unique within a run.
    """

    @property
    def name(self) -> str: ...


# A worker processes one part, writes its files atomically and returns a small, picklable report.
# What it raises ends the run.
Worker = Callable[[Any], dict]
# Builds a worker from a torch device such as "cpu" or "cuda:0", once in a process; picklable.
Factory = Callable[[str], Worker]


class UnbuiltWorkerError(RuntimeError):
    """Error for processes that are killed, time and again, before their worker is built."""


@dataclass(frozen=True)
class PartFailure:
    """Failure of a part whose worker process was killed in every attempt.

    Attributes:
        reason: what ended the processes.
    """

    reason: str


# A part, and the report of its worker or its failure.
Outcome = tuple[Any, "dict | PartFailure"]
RunParts = Callable[[Factory, Iterable[Any], "EngineOptions"], Iterator[Outcome]]


@dataclass(frozen=True)
class EngineOptions:
    """Resources of a run.

    Attributes:
        workers: number of worker processes; None for one a GPU, or for as many as there are cores
            for them, of this machine or of the Ray cluster.
        devices: torch devices. Local processes take them in turns; Ray hands out its own GPUs, so
            that only the kind matters to it.
        threads: torch threads of a process. Results on a CPU depend on this number.
        cores: cores that a process needs, those of its decoding threads included; None for those
            of its torch threads.
        attempts: number of processes that may be killed by a part before it fails.
        ray_address: address of a Ray cluster or "auto"; None for one of this run alone.

    Raises:
        ValueError: a number is below 1, there is no device, or they are of two kinds.
    """

    workers: int | None = None
    devices: tuple[str, ...] = ("cpu",)
    threads: int = 1
    cores: int | None = None
    attempts: int = 3
    ray_address: str | None = None

    def __post_init__(self):
        for name in ("workers", "threads", "cores", "attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if len({device.partition(":")[0] for device in self.devices}) != 1:
            raise ValueError(f"devices: expected devices of one kind, got {self.devices}")

    @property
    def gpus(self) -> int:
        """Number of GPUs; 0 on a CPU."""
        return 0 if self.devices[0].startswith("cpu") else len(self.devices)

    @property
    def needed_cores(self) -> int:
        """Number of cores that a process needs."""
        return self.threads if self.cores is None else self.cores

    @property
    def local_workers(self) -> int:
        """Number of worker processes on this machine."""
        return self.workers or self.gpus or max(1, (os.cpu_count() or 1) // self.needed_cores)


def thread_variables(threads: int) -> dict[str, str]:
    """Return the environment variables that torch and its libraries read when they are loaded."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))
