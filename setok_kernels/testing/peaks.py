"""Checks of the decisions of all density clusterings: neighbours, densities, parents.

Tokens are those of one image without the excluded ones, numbered from 0.
"""

import torch
from torch import Tensor

from setok_kernels.testing.images import Image
from setok_kernels.testing.intervals import Interval


def judge_neighbours(image: Image, distance: Interval, knn: Tensor, include_self: bool) -> None:
    """Assert that `knn` (n, k) has the nearest tokens by ascending distance, then -1."""
    tokens, k = knn.shape
    found = knn >= 0
    candidates = tokens if include_self else tokens - 1
    expected = torch.arange(k, device=knn.device) < candidates
    assert (found == expected).all(), f"expected {min(k, candidates)} neighbours first, then -1"
    knn = knn[:, : min(k, candidates)]
    chosen = torch.zeros(tokens, tokens, dtype=torch.bool, device=knn.device)
    chosen.scatter_(1, knn, True)
    assert (chosen.sum(1) == knn.shape[1]).all(), "a token has the same neighbour twice"
    own = torch.eye(tokens, dtype=torch.bool, device=knn.device)
    if not include_self:
        assert not (chosen & own).any(), "a token is its own neighbour"
        chosen = chosen | own
    near = Interval(distance.lo.gather(1, knn), distance.hi.gather(1, knn))
    unsorted = near.lo[:, :-1] > near.hi[:, 1:]
    assert not unsorted.any(), f"neighbours of {image.first(unsorted)} do not ascend"
    if knn.shape[1]:
        closest_left = distance.hi.masked_fill(chosen, torch.inf).amin(1)
        wrong = near.lo.amax(1) > closest_left
        assert not wrong.any(), (
            f"a neighbour of token {image.first(wrong)} is not among the nearest"
        )


def density_bounds(scaled: Interval, knn: Tensor, roundoff: float) -> Interval:
    """Return (n,) bounds of the density from neighbours and bounds of the scaled distances."""
    found = knn >= 0
    count = found.sum(1).clamp(min=1)

    def mean(end):
        return torch.where(found, end.gather(1, knn.clamp(min=0)), 0).sum(1) / count

    average = scaled.rising(mean).widen((knn.shape[1] + 3) * roundoff)
    tiny = torch.finfo(torch.float32).tiny
    return average.falling(lambda m: torch.exp(-m)).widen(4 * roundoff, tiny).clamp(0, 1)


def judge_parents(image: Image, distance: Interval, density: Interval, parent: Tensor) -> None:
    """Assert that the parents (n,) are the nearest tokens of higher density; one token has -1."""
    tokens = parent.shape[0]
    tops = (parent < 0).sum().item()
    assert tops == 1, f"expected one top token (parent -1), got {tops}"
    certain = density.lo[None, :] > density.hi[:, None]
    is_top = parent < 0
    not_densest = is_top & certain.any(1)
    assert not not_densest.any(), f"top token {image.first(not_densest)} is not the densest"
    row = torch.arange(tokens, device=parent.device)
    target = parent.clamp(min=0)
    lower = ~is_top & ((density.hi[target] < density.lo) | (target == row))
    assert not lower.any(), f"parent of token {image.first(lower)} is not of higher order"
    nearest = distance.hi.masked_fill(~certain, torch.inf).amin(1)
    wrong = ~is_top & (distance.lo[row, target] > nearest)
    assert not wrong.any(), f"parent of token {image.first(wrong)} is not the nearest"
    hop = torch.where(is_top, row, parent)
    for _ in range(tokens.bit_length()):
        hop = hop[hop]
    assert is_top[hop].all(), "the parents form a cycle"
