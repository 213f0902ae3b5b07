"""Tiers 1 and 2 of the comparison: equal decisions and optimal decisions."""

from dataclasses import fields

import torch
from torch import Tensor

from setok_kernels.config import ClusterConfig
from setok_kernels.result import Clusters, Decisions, DensityPeaks
from setok_kernels.testing.images import Image, images
from setok_kernels.testing.intervals import (
    Interval,
    alpha_bounds,
    squared_distance_bounds,
    variance_scale_bounds,
)
from setok_kernels.testing.peaks import density_bounds, judge_neighbours, judge_parents


def assert_valid_decisions(
    x: Tensor,
    out: Clusters,
    config: ClusterConfig,
    token_mask: Tensor | None = None,
    input_roundoff: float = 0.0,
    *,
    importance: Tensor | None = None,
    budget: Tensor | None = None,
    exact_budget: bool = False,
) -> None:
    """Assert that each decision of `out` is optimal in float64 within the rounding error bound.

    Each decision is judged given the earlier ones: neighbours, then parents given the neighbours,
    then each seed given its predecessors. The tolerance is the error bound of a dot product in the
    accumulation dtype, propagated by interval arithmetic; no constant is tuned.

    Args:
        x: input of the clustering, any layout.
        out: result of the clustering.
        config: options of the clustering.
        token_mask: mask of valid tokens.
        input_roundoff: relative rounding of matrix product inputs allowed to the backend (2**-11
            for tf32), 0 if it uses the dtype of `x`.
        importance: argument of `cluster_tokens`.
        budget: (B,) maximum number of seeds of each image; None for `config.max_clusters`.
        exact_budget: argument `exact` of `cluster_tokens`.

    Raises:
        AssertionError: a decision is not optimal; the message has image, token and decision.
    """
    weights = flat_importance(importance, out)
    for image in images(x, out, token_mask):
        weight = None if weights is None else weights[image.span]
        limit = config.max_clusters if budget is None else int(budget[image.index])
        with image.named():
            decisions = _decisions_of(out, image)
            _judge_image(image, decisions, config, input_roundoff, weight, limit, exact_budget)


def flat_importance(importance: Tensor | None, out: Clusters | DensityPeaks) -> Tensor | None:
    """Return the weights in the shape of the labels, rounded to the dtype of the scores."""
    if importance is None:
        return None
    return importance.detach().reshape(out.labels.shape).to(out.score.dtype).double()


def assert_same_decisions(
    x: Tensor,
    out: Clusters,
    expected: Clusters,
    token_mask: Tensor | None = None,
    importance: Tensor | None = None,
) -> None:
    """Assert that the decisions of `out` and `expected` are bit-equal, ties included.

    There is one exemption, for exactly representable inputs. Two tokens with equal scores, whose
    distances to the earlier seeds are the same numbers in another order, are tied in exact
    arithmetic. But z is a product in that order and rounds differently. If `out` and `expected`
    differ at such a tie, `assert_valid_decisions` judges the later seeds of this image.

    Args:
        x: input of the clustering, any layout, exactly representable.
        out: result of the clustering.
        expected: result of the reference.
        token_mask: mask of valid tokens.
        importance: argument of `cluster_tokens`, powers of two or 0.

    Raises:
        AssertionError: a decision differs; the message has its name and first position.
    """
    for name in ("knn", "parent"):
        assert_equal(name, getattr(out.decisions, name), getattr(expected.decisions, name))
    weights = flat_importance(importance, out)
    for image in images(x, out, token_mask):
        mine, other = _decisions_of(out, image), _decisions_of(expected, image)
        a, b = mine.seeds, other.seeds
        if torch.equal(a, b):
            assert_equal("counts", mine.counts, other.counts)
            continue
        step = int((a != b).nonzero()[0])
        weight = None if weights is None else weights[image.span]
        if not _permuted_tie(image, mine, step, int(a[step]), int(b[step]), weight):
            raise AssertionError(
                f"image {image.index}: seed {step} is {int(a[step])}, expected {int(b[step])}"
            )


def assert_equal(name: str, got: Tensor, expected: Tensor) -> None:
    """Assert that two int64 tensors are equal; the message has the first different element."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise AssertionError(
            f"{name}: got {tuple(got.shape)} {got.dtype}, "
            f"expected {tuple(expected.shape)} {expected.dtype}"
        )
    if not torch.equal(got, expected):
        where = tuple((got != expected).nonzero()[0].tolist())
        raise AssertionError(
            f"{name}{list(where)}: got {int(got[where])}, expected {int(expected[where])}"
        )


def _permuted_tie(
    image: Image, decisions: Decisions, step: int, a: int, b: int, weight: Tensor | None
) -> bool:
    """Return True if tokens a and b tie at `step`, but their factors of z have another order."""
    if min(a, b) < 0:
        return False
    knn, parent = decisions.knn, decisions.parent
    bounds = squared_distance_bounds(image.x, 0.0, 0.0)
    distance = (bounds.lo + bounds.hi) / 2

    def score_terms(i):
        far = distance[i][image.ok].max() if parent[i] < 0 else distance[i, parent[i]]
        own = 1.0 if weight is None else float(weight[i])
        return [*distance[i, knn[i][knn[i] >= 0]].round().tolist(), far.round().item() * own]

    history = [distance[i, decisions.seeds[:step]].round() for i in (a, b)]
    return (
        score_terms(a) == score_terms(b)
        and not torch.equal(*history)
        and torch.equal(history[0].sort().values, history[1].sort().values)
    )


def _decisions_of(out: Clusters, image: Image) -> Decisions:
    d = out.decisions
    return Decisions(
        d.knn[image.span], d.parent[image.span], d.seeds[image.index], d.counts[image.index]
    )


def _judge_image(
    image: Image,
    d: Decisions,
    config: ClusterConfig,
    input_roundoff: float,
    weight: Tensor | None,
    limit: int,
    exact_budget: bool,
) -> None:
    ok, roundoff = image.ok, image.roundoff
    for field in fields(d):
        value = getattr(d, field.name)
        assert value.dtype == torch.int64, f"{field.name} is {value.dtype}, expected int64"
    seeds, count = d.seeds, int(d.counts)
    assert 0 <= count <= limit, f"counts is {count}, expected at most {limit}"
    assert (seeds[count:] == -1).all(), f"seeds after the first {count} are not all -1"
    assert (d.knn[~ok] == -1).all(), "an excluded token has neighbours"
    assert (d.parent[~ok] == -1).all(), "an excluded token has a parent"
    if not ok.any():
        assert count == 0, f"counts is {count} without tokens"
        return

    knn, parent = image.compact("knn", d.knn[ok]), image.compact("parent", d.parent[ok])
    chosen = image.compact("seeds", seeds[:count]).tolist()
    assert all(s >= 0 for s in chosen), "a seed below counts is -1"

    x = image.x[ok]
    magnitude = x.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    x = x / magnitude
    distance = squared_distance_bounds(x, roundoff, input_roundoff)
    if config.distance_scale == "variance":
        sigma = variance_scale_bounds(x, roundoff)
    else:
        factor = 1 / x.shape[1] if config.distance_scale == "dim" else config.distance_scale
        exact = factor * magnitude.square()
        sigma = Interval(exact, exact).widen(4 * roundoff)

    judge_neighbours(image, distance, knn, config.include_self)
    scaled = distance * sigma
    density = density_bounds(scaled, knn, roundoff)
    judge_parents(image, distance, density, parent)
    weight = None if weight is None else weight[ok]
    score = _score_bounds(scaled, density, parent, config, roundoff, weight)
    _judge_seeds(image, scaled, score, chosen, config, limit, exact_budget)


def _score_bounds(
    scaled: Interval,
    density: Interval,
    parent: Tensor,
    config: ClusterConfig,
    roundoff: float,
    weight: Tensor | None,
) -> Interval:
    row = torch.arange(parent.shape[0], device=parent.device)

    def delta(end):
        return torch.where(parent < 0, end.amax(1), end[row, parent.clamp(min=0)])

    score = (density * scaled.rising(delta)).widen(4 * roundoff)
    if weight is not None:
        score = (score * Interval(weight, weight)).widen(roundoff)
    if config.score_norm is None:
        return score
    largest = Interval(score.lo.max(), score.hi.max())
    if largest.hi == 0:
        return score
    if largest.lo <= torch.finfo(torch.float32).tiny:
        # The maximum may or may not count as 0, so raw and normalised scores are both possible.
        return Interval(torch.zeros_like(score.lo), score.hi.clamp(min=1))
    return Interval(score.lo / largest.hi, score.hi / largest.lo).widen(2 * roundoff).clamp(0, 1)


def _judge_seeds(
    image: Image,
    scaled: Interval,
    score: Interval,
    seeds: list[int],
    config: ClusterConfig,
    limit: int,
    exact_budget: bool,
) -> None:
    roundoff, position = image.roundoff, image.position
    tokens = score.lo.shape[0]
    scope = Interval(torch.ones_like(score.lo), torch.ones_like(score.lo))
    eligible = torch.ones(tokens, dtype=torch.bool, device=position.device)
    # The mean and the mass are sums of N terms.
    summing = (tokens + 2) * roundoff

    def mask_of(seed):
        return (scope * alpha_bounds(scaled[seed], score, config, roundoff)).widen(roundoff)

    for step, seed in enumerate(seeds):
        where = f"seed {step} (token {int(position[seed])})"
        assert eligible[seed], f"{where} was a seed before"
        priority = (scope * score).widen(2 * roundoff)
        best = priority.lo[eligible].max()
        assert priority.hi[seed] >= best, (
            f"{where} has priority at most {priority.hi[seed]:.9g}, another at least {best:.9g}"
        )
        mass = mask_of(seed).hi.sum() * (1 + summing)
        assert exact_budget or mass >= config.min_mass, f"{where} has less than min_mass"
        alpha = alpha_bounds(scaled[seed], score, config, roundoff)
        rest = alpha.falling(lambda a: 1 - a).widen(0, roundoff).clamp(0, 1)
        scope = (scope * rest).widen(roundoff).clamp(0, 1)
        if config.distinct_seeds:
            eligible[seed] = False
        if step + 1 < len(seeds) and not exact_budget:
            left = scope.hi.mean() * (1 + summing)
            assert left > config.stop_residual, f"continued after {where}, mean scope {left:.9g}"
    if len(seeds) == limit or not eligible.any():
        return
    assert not exact_budget, f"stopped after {len(seeds)} seeds, expected {min(limit, tokens)}"
    if seeds and scope.lo.mean() * (1 - summing) <= config.stop_residual:
        return
    priority = (scope * score).widen(2 * roundoff)
    possible = eligible & (priority.hi >= priority.lo[eligible].max())
    small = [
        mask_of(seed).lo.sum() * (1 - summing) < config.min_mass
        for seed in possible.nonzero()[:, 0].tolist()
    ]
    assert any(small), f"stopped after {len(seeds)} seeds without a reason"
