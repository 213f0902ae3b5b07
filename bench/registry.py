"""What is measured: an entry for every operation, with the contenders that carry it out."""

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
    """Why a contender cannot run here, and what to do about it."""


@dataclass(frozen=True)
class Case:
    """Input of one measurement.

    Attributes:
        shape: its sizes.
        device: where it is computed.
        peer_root: a folder with copies of other projects' repositories, or None.
    """

    shape: Shape
    device: torch.device
    peer_root: Path | None = None

    def tokens(self) -> Tensor:
        """(B, N, D) standard normal features: no groups, so that every step of the loop is run."""
        s, generator = self.shape, torch.Generator().manual_seed(0)
        x = torch.randn(s.images, s.tokens, s.features, generator=generator)
        return x.to(self.device, s.dtype)

    def groups(self) -> Tensor:
        """(B, N, D) features in as many groups as there may be clusters."""
        s = self.shape
        x, _ = testing.planted_clusters(s.images, s.tokens, s.features, s.clusters, noise=0.5)
        return x.to(self.device, s.dtype)

    @property
    def config(self) -> sk.ClusterConfig:
        """Runs all `clusters` steps: the slow case."""
        return sk.ClusterConfig(k=self.shape.k, max_clusters=self.shape.clusters, stop_residual=0.0)


@dataclass(frozen=True)
class Contender:
    """One way to carry out an operation.

    Attributes:
        name: unique within its entry.
        make: makes the call to be timed; raises `Unavailable`.
        check: raises `AssertionError` where the result of the call is wrong for the case. What
            fails it is not timed.
        devices: kinds of device it is for.
        work: bytes and flops of what it does, where that is not what the entry's operation does.
        role: of ours, "ours" and "reference"; a "yardstick" does something else that the time is
            compared with; the rest are peers.
    """

    name: str
    make: Callable[[Case], Call]
    check: Callable[[Case, object], None]
    role: Role = "peer"
    devices: tuple[str, ...] = ("cpu", "cuda")
    work: Callable[[Shape], Work] | None = None


@dataclass(frozen=True)
class Entry:
    """One operation.

    Attributes:
        op: its name.
        work: bytes and flops for a shape.
        contenders: who carries it out.
        yardstick: name of the contender that the others are compared with, if there is one.
    """

    op: str
    work: Callable[[Shape], Work]
    contenders: tuple[Contender, ...]
    yardstick: str | None = None

    def only(self, names: tuple[str, ...]) -> Entry:
        """With these contenders only.

        Raises:
            ValueError: there is no such contender.
        """
        known = {contender.name: contender for contender in self.contenders}
        for name in names:
            if name not in known:
                raise ValueError(
                    f"contender: expected one of {', '.join(known)} for {self.op}, got {name!r}"
                )
        return replace(self, contenders=tuple(known[name] for name in names))


@dataclass(frozen=True)
class Job:
    """Shapes at which an entry is measured.

    Attributes:
        entry: what.
        shapes: at which sizes.
        group: tells jobs of one entry apart. Those called "images" or "tokens" vary that size, to
            fit how the time grows.
    """

    entry: Entry
    shapes: tuple[Shape, ...]
    group: str = "main"


SWEEPS = ("images", "tokens")
