"""Data model of the benchmarks: entries (operations) and their implementations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import setok_kernels as sk
from setok_bench.timing import Call
from setok_bench.work import Shape, Work
from setok_kernels import testing

Role = Literal["ours", "reference", "yardstick", "peer"]


class Unavailable(Exception):
    """Error: an implementation cannot run here; the message has reason and remedy."""


@dataclass(frozen=True)
class Case:
    """Input of one measurement.

    Attributes:
        shape: sizes of the input.
        device: device of the computation.
        peer_root: folder with clones of other projects' repositories, or None.
    """

    shape: Shape
    device: torch.device
    peer_root: Path | None = None

    def tokens(self) -> Tensor:
        """Return (B, N, D) standard normal features: without groups, every loop step runs."""
        s, generator = self.shape, torch.Generator().manual_seed(0)
        x = torch.randn(s.images, s.tokens, s.features, generator=generator)
        return x.to(self.device, s.dtype)

    def groups(self) -> Tensor:
        """Return (B, N, D) features in as many groups as clusters."""
        s = self.shape
        x, _ = testing.planted_clusters(s.images, s.tokens, s.features, s.clusters, noise=0.5)
        return x.to(self.device, s.dtype)

    @property
    def config(self) -> sk.ClusterConfig:
        """Options that run all `clusters` steps, the slow case."""
        return sk.ClusterConfig(k=self.shape.k, max_clusters=self.shape.clusters, stop_residual=0.0)


@dataclass(frozen=True)
class Implementation:
    """An implementation of an operation.

    Attributes:
        name: unique name within its entry.
        make: function of a case that returns the call to time, or raises `Unavailable`.
        check: function of a case and a result that raises `AssertionError` for a wrong result. A
            failing implementation is not timed.
        devices: supported device types.
        work: bytes and flops, if they differ from those of the entry's operation.
        role: "ours" and "reference" for our backends; "yardstick" for another computation that
            times are compared with; "peer" for other projects.
    """

    name: str
    make: Callable[[Case], Call]
    check: Callable[[Case, object], None]
    role: Role = "peer"
    devices: tuple[str, ...] = ("cpu", "cuda")
    work: Callable[[Shape], Work] | None = None


@dataclass(frozen=True)
class Entry:
    """An operation to measure.

    Attributes:
        op: name of the operation.
        work: function of a shape that returns bytes and flops.
        implementations: implementations of the operation.
        yardstick: name of the implementation that the others are compared with, if any.
    """

    op: str
    work: Callable[[Shape], Work]
    implementations: tuple[Implementation, ...]
    yardstick: str | None = None

    def only(self, names: tuple[str, ...]) -> Entry:
        """Return the entry with these implementations only.

        Raises:
            ValueError: a name is unknown.
        """
        known = {implementation.name: implementation for implementation in self.implementations}
        for name in names:
            if name not in known:
                choices = ", ".join(known)
                raise ValueError(
                    f"implementation: expected one of {choices} for {self.op}, got {name!r}"
                )
        return replace(self, implementations=tuple(known[name] for name in names))


@dataclass(frozen=True)
class Job:
    """Shapes at which an entry is measured.

    Attributes:
        entry: entry to measure.
        shapes: sizes of the inputs.
        group: name of the job within its entry. The groups "images" and "tokens" vary that size, to
            fit the growth of the time.
    """

    entry: Entry
    shapes: tuple[Shape, ...]
    group: str = "main"


SWEEPS = ("images", "tokens")
