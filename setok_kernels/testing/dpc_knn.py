"""Comparison of a `dpc_knn` result with float64 bounds."""

from typing import Literal

import torch
from torch import Tensor

from setok_kernels import layout
from setok_kernels.config import DPCOptions
from setok_kernels.reference import density as plain
from setok_kernels.reference.dpc_knn import capped_distance, noisy_density, usable_tokens
from setok_kernels.reference.scope import usable_importance, weighted_score
from setok_kernels.result import DensityPeaks
from setok_kernels.testing.decisions import flat_importance
from setok_kernels.testing.hard import assert_hard_invariants, judge_labels
from setok_kernels.testing.images import Image, images, usable
from setok_kernels.testing.intervals import Interval, squared_distance_bounds
from setok_kernels.testing.peaks import density_bounds, judge_neighbours, judge_parents
from setok_kernels.testing.values import assert_error, feature_orders


def assert_valid_density_peaks(
    x: Tensor,
    out: DensityPeaks,
    k: int = 5,
    num_clusters: int | None = None,
    threshold: float | None = None,
    token_mask: Tensor | None = None,
    noise: Tensor | None = None,
    min_clusters: int = 1,
    order: Literal["score", "index"] = "score",
    cap: Literal["diameter", "eccentricity"] = "diameter",
    input_roundoff: float = 0.0,
    *,
    importance: Tensor | None = None,
    budget: Tensor | None = None,
) -> None:
    """Assert that decisions and values of `out` are within the rounding error bound of float64.

    Each decision is judged given the earlier ones: neighbours, parents, centres, labels. The
    tolerance is that of `assert_valid_decisions`. Density, delta and score are within the same
    bounds, and err at most twice as much as plain PyTorch in the dtype of `x`. The truth is float64
    with the neighbours, parents and density order of `out`. Float64 input is only compared with the
    bounds, because no truth is more precise.

    Args:
        x: input of the clustering, any layout.
        out: result of the clustering.
        k: argument of `dpc_knn`.
        num_clusters: argument of `dpc_knn`.
        threshold: argument of `dpc_knn`.
        token_mask: argument of `dpc_knn`.
        noise: argument of `dpc_knn`.
        min_clusters: argument of `dpc_knn`.
        order: argument of `dpc_knn`.
        cap: argument of `dpc_knn`.
        input_roundoff: relative rounding of the inputs, see `assert_valid_decisions`.
        importance: argument of `dpc_knn`.
        budget: (B,) maximum number of centres of each image; None for the number of rows.

    Raises:
        AssertionError: a decision or value is wrong; the message has image, token and decision, or
            the value and its error.
    """
    budgeted = budget is not None
    options = DPCOptions(k, num_clusters, threshold, min_clusters, order, cap, budgeted)
    assert_hard_invariants(x, out, token_mask, importance)
    longest = out.labels.shape[1] if out.cu_seqlens is None else out.max_seqlen
    for name, got, expected in (
        ("knn", out.knn.shape[-1], k),
        ("centres", out.num_rows, longest if num_clusters is None else num_clusters),
    ):
        assert got == expected, f"{name}: {got} columns, expected {expected}"
    if noise is not None:
        noise = noise.detach().reshape(out.labels.shape).to(out.density.dtype)
    weights = flat_importance(importance, out)
    for image in images(x, out, token_mask):
        columns = out.num_rows
        if budget is not None:
            columns = min(columns, int(budget[image.index]))
        with image.named():
            if image.ok.any():
                _judge_image(image, out, noise, weights, columns, options, input_roundoff)
    if x.dtype != torch.float64:
        _judge_values(x, out, noise, weights, token_mask, cap)


def _judge_image(
    image: Image,
    out: DensityPeaks,
    noise: Tensor | None,
    weights: Tensor | None,
    columns: int,
    options: DPCOptions,
    input_roundoff: float,
) -> None:
    ok, roundoff = image.ok, image.roundoff
    knn, parent = (
        image.compact(name, getattr(out, name)[image.span][ok]) for name in ("knn", "parent")
    )
    x = image.x[ok]
    magnitude = x.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    distance = squared_distance_bounds(x / magnitude, roundoff, input_roundoff, image.tiny)
    judge_neighbours(image, distance, knn, include_self=True)
    # Beyond this every density is 0.
    sigma = magnitude.clamp(max=1e100).square() / x.shape[1]
    scaled = (distance * Interval(sigma, sigma)).widen(4 * roundoff)
    density = density_bounds(scaled, knn, roundoff)
    if noise is not None:
        added = noise[image.span][ok].double()
        density = Interval(density.lo + added, density.hi + added).widen(roundoff)
    judge_parents(image, distance, density, parent)

    nearer = _delta_bounds(distance, density, parent, options.cap)
    delta = nearer.rising(lambda d: (d / x.shape[1]).sqrt() * magnitude)
    delta = delta.widen(4 * roundoff, image.tiny).clamp(0, torch.finfo(out.delta.dtype).max)
    # The density may be negative with noise.
    score = Interval(
        density.lo * torch.where(density.lo < 0, delta.hi, delta.lo),
        density.hi * torch.where(density.hi < 0, delta.lo, delta.hi),
    ).widen(4 * roundoff, image.tiny)
    if weights is not None:
        own = weights[image.span][ok]
        score = Interval(score.lo * own, score.hi * own).widen(roundoff, image.tiny)
        score = score.clamp(high=torch.finfo(out.score.dtype).max)
    count = int(out.counts[image.index])
    centres = image.compact("centres", out.centres[image.index, :count])
    _judge_centres(image, score, centres, options, columns)
    judge_labels(image, distance, centres, out.labels[image.span][ok])
    for name, bounds in (("density", density), ("delta", delta), ("score", score)):
        value = getattr(out, name)[image.span][ok].double()
        wrong = ((value < bounds.lo) | (value > bounds.hi)).nonzero()[:1, 0]
        assert not len(wrong), (
            f"{name} of token {int(image.position[wrong])} is {value[wrong].item():.9g}, expected "
            f"{bounds.lo[wrong].item():.9g} to {bounds.hi[wrong].item():.9g}"
        )


def _delta_bounds(distance: Interval, density: Interval, parent: Tensor, cap: str) -> Interval:
    """Return bounds of the squared distance to the parent, at most the cap."""
    row = torch.arange(parent.shape[0], device=parent.device)

    def to_parent(end):
        return torch.where(parent < 0, torch.inf, end[row, parent.clamp(min=0)])

    near = distance.rising(to_parent)
    farthest = distance.rising(lambda end: end.amax(1))
    if cap == "diameter":
        limit = farthest.rising(lambda end: end.max())
    else:
        # (n, n): the other token has no higher order; of equal tokens either may precede.
        surely = density.hi[None, :] < density.lo[:, None]
        surely.fill_diagonal_(True)
        possibly = density.lo[None, :] <= density.hi[:, None]
        limit = Interval(
            farthest.lo.expand_as(possibly).masked_fill(~possibly, torch.inf).amin(1),
            farthest.hi.expand_as(surely).masked_fill(~surely, torch.inf).amin(1),
        )
    return Interval(torch.minimum(near.lo, limit.lo), torch.minimum(near.hi, limit.hi))


def _judge_centres(
    image: Image, score: Interval, centres: Tensor, options: DPCOptions, columns: int
) -> None:
    """Assert that the centres (c,) have the highest scores, the right number and order."""
    position, tokens, count = image.position, score.lo.shape[0], centres.shape[0]
    limit = min(tokens, columns)
    chosen = torch.zeros(tokens, dtype=torch.bool, device=centres.device)
    chosen[centres] = True
    if options.threshold is None:
        assert count == limit, f"counts is {count}, expected {limit}"
    else:
        _judge_count(image, score, chosen, options, limit)
    if count < tokens:
        left = score.lo.masked_fill(chosen, -torch.inf)
        worse = chosen & (score.hi < left.max())
        assert not worse.any(), (
            f"centre {image.first(worse)} has a lower score than token "
            f"{int(position[left.argmax()])}, which is no centre"
        )
    if options.order == "index":
        assert (centres.diff() > 0).all(), "centres do not ascend"
        return
    later = score.lo[centres].flip(0).cummax(0).values.flip(0)
    late = score.hi[centres[:-1]] < later[1:]
    assert not late.any(), (
        f"centre {int(position[centres[:-1][late][0]])} precedes a centre of higher score"
    )


def _judge_count(
    image: Image, score: Interval, chosen: Tensor, options: DPCOptions, limit: int
) -> None:
    """Assert that the chosen tokens (n,) are all above the threshold, or else `min_clusters`."""
    assert options.threshold is not None
    # The threshold may have been rounded to the dtype of the score.
    doubt = abs(options.threshold) * image.roundoff
    sure = score.lo > options.threshold + doubt
    possible = score.hi > options.threshold - doubt
    count = int(chosen.sum())
    if not sure.any() and count == min(options.min_clusters, limit):
        return
    low = chosen & ~possible
    assert not low.any(), f"centre {image.first(low)} has no score above the threshold"
    missing = sure & ~chosen
    assert count == limit or not missing.any(), (
        f"token {image.first(missing)} has a score above the threshold and is no centre"
    )


def _judge_values(
    x: Tensor,
    out: DensityPeaks,
    noise: Tensor | None,
    weights: Tensor | None,
    token_mask: Tensor | None,
    cap: str,
) -> None:
    x = x.detach().reshape(*out.labels.shape, x.shape[-1])
    with torch.no_grad():
        given = (out, noise, weights, token_mask, cap)
        truth = _replay(x.double(), *given)
        plain = [_replay(x[..., order], *given) for order in feature_orders(x)]
    for name, expected in truth.items():
        measured = torch.stack([values[name] for values in plain])
        assert_error(name, getattr(out, name), expected, measured, expected, 1.0)


def _replay(
    x: Tensor,
    out: DensityPeaks,
    noise: Tensor | None,
    weights: Tensor | None,
    token_mask: Tensor | None,
    cap: str,
) -> dict[str, Tensor]:
    """Return density, delta and score in the dtype of `x`, given the decisions of `out`."""
    valid = usable(x, out, token_mask)
    tensors = [x, valid, out.knn, out.parent, out.density]
    if out.cu_seqlens is not None:
        assert out.max_seqlen is not None
        tensors = [layout.pad(t, out.cu_seqlens, out.max_seqlen) for t in tensors]
        if noise is not None:
            noise = layout.pad(noise, out.cu_seqlens, out.max_seqlen)
        if weights is not None:
            weights = layout.pad(weights, out.cu_seqlens, out.max_seqlen)
    x, valid, knn, parent, order = tensors
    if x.numel() == 0:
        return {}
    x, ok = usable_tokens(x, valid.bool())
    x, exponent = plain.normalise_range(x)
    squared, dim = plain.squared_distances(x), x.shape[2]
    sigma = plain.fixed_scale(x, exponent, 1 / dim)
    density = noisy_density(squared, knn, sigma, ok, noise)
    delta = capped_distance(squared, parent, order, exponent, dim, ok, cap)
    score = weighted_score(density, delta, usable_importance(weights, ok, density.dtype))
    values = dict(density=density, delta=delta, score=score)
    if out.cu_seqlens is None:
        return values
    total = out.labels.shape[0]
    return {n: layout.unpad(v, out.cu_seqlens, total) for n, v in values.items()}
