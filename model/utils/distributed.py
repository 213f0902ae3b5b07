"""Collective operations that also work in a single process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

_T = TypeVar("_T")


def world_size() -> int:
    """Return the number of processes, 1 while torch.distributed is not initialised."""
    return dist.get_world_size() if _initialised() else 1


def rank() -> int:
    """Return the rank of this process, 0 while torch.distributed is not initialised."""
    return dist.get_rank() if _initialised() else 0


def gather_with_gradient(x: Tensor) -> Tensor:
    """Concatenate the tensors of all ranks.

    The backward pass sums the gradients of all ranks' losses, so that a loss on one rank reaches
    the samples of the others. All ranks must therefore run the backward pass.

    Args:
        x: (B, ...), the same shape and dtype on every rank.

    Returns:
        (world · B, ...) in the order of the ranks; carries gradient.

    Raises:
        ValueError: `x` has no dimensions.
    """
    if x.dim() == 0:
        raise ValueError("x: expected at least one dimension, got a scalar")
    return _Gather.apply(x) if world_size() > 1 else x


@torch.no_grad()
def mean_over_ranks(x: Tensor) -> Tensor:
    """Average the tensors of all ranks, the same shape on each; carries no gradient.

    Raises:
        TypeError: `x` is not floating point.
    """
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point dtype, got {x.dtype}")
    total = x.detach().clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        dist.all_reduce(total)
        total /= world_size()
    return total


def local_shard(x: Tensor) -> Tensor:
    """Return this rank's shard of a distributed tensor, sharing its memory, or `x` itself."""
    return x.to_local() if isinstance(x, DTensor) else x


@torch.no_grad()
def full_tensor(x: Tensor) -> Tensor:
    """Gather all shards of a distributed tensor, on all ranks together; others are returned as is.

    Returns:
        A tensor of `x`'s shape; carries no gradient.
    """
    return x.full_tensor() if isinstance(x, DTensor) else x


def sizes_over_ranks(sizes: Sequence[int], device: torch.device) -> list[tuple[int, ...]]:
    """Gather a few integers from every rank.

    Args:
        sizes: integers, equally many on every rank.
        device: device that the communication backend can use.

    Returns:
        One tuple per rank.
    """
    own = torch.tensor([sizes], dtype=torch.int64, device=device)  # (1, n)
    return [tuple(row) for row in gather_with_gradient(own).tolist()]


class OtherRankError(ValueError):
    """Failure on another rank, with the message of its error."""


def gather_objects(value: Any) -> list[Any]:
    """Gather picklable values from all ranks, in the order of the ranks."""
    found = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, value)
    return found


def run_on_all_ranks(
    work: Callable[[], _T], gather: Callable[[Any], list[Any]] = gather_objects
) -> list[_T]:
    """Run a function on all ranks; a failure on one rank is raised on all.

    A rank that fails alone would leave the others waiting in the next collective call.

    Args:
        work: function without collective calls; its result can be pickled.
        gather: function that gathers a value from all ranks, with the interface of
            `gather_objects`.

    Returns:
        The results in the order of the ranks.

    Raises:
        OtherRankError: the work failed on another rank; this rank's own error is raised as it is.
    """
    try:
        found, own = work(), None
    except Exception as error:
        found, own = None, error
    outcomes = gather((found, None if own is None else str(own)))
    if own is not None:
        raise own
    for number, (_, message) in enumerate(outcomes):
        if message is not None:
            raise OtherRankError(f"process {number}: {message}")
    return [result for result, _ in outcomes]


class _Gather(torch.autograd.Function):
    """All-gather whose backward pass sums the gradients of all ranks."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, d_gathered: Tensor) -> Tensor:
        # Not reduce_scatter, which gloo lacks in older releases.
        total = d_gathered.clone(memory_format=torch.contiguous_format)  # (world · B, ...)
        dist.all_reduce(total)
        return total.unflatten(0, (world_size(), -1))[rank()]


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()
