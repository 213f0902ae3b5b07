"""Tiers 1 and 2 of the comparison: are the decisions the same, are they optimal."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from setok_kernels.config import ClusterConfig
from setok_kernels.result import Clusters, Decisions
from setok_kernels.testing.intervals import (
    Interval,
    alpha_bounds,
    squared_distance_bounds,
    variance_scale_bounds,
)


@dataclass(frozen=True)
class _Image:
    """One image of a result: features in float64, which tokens take part, local decisions."""

    index: int
    x: Tensor
    ok: Tensor
    decisions: Decisions


def assert_valid_decisions(
    x: Tensor,
    out: Clusters,
    config: ClusterConfig,
    token_mask: Tensor | None = None,
    input_roundoff: float = 0.0,
) -> None:
    """Every decision of `out` is optimal in float64 within the rounding error bound.

    Each is judged given the decisions before it: neighbours, then parents given the neighbours,
    then each seed given its predecessors. The tolerance follows from the error bound of a dot
    product in the accumulation dtype, carried forward by interval arithmetic; no number is tuned.

    Args:
        x: the input of the clustering, any layout.
        out: its result.
        config: its options.
        token_mask: its mask.
        input_roundoff: relative rounding of matrix product inputs that the backend is allowed
            (2**-11 for tf32), 0 when it uses the dtype of `x`.

    Raises:
        AssertionError: names the image, the token and the decision.
    """
    roundoff = 2.0**-53 if x.dtype == torch.float64 else 2.0**-24
    for image in _images(x, out, token_mask):
        try:
            _judge_image(image, config, roundoff, input_roundoff)
        except AssertionError as error:
            raise AssertionError(f"image {image.index}: {error}") from None


def assert_same_decisions(
    x: Tensor, out: Clusters, expected: Clusters, token_mask: Tensor | None = None
) -> None:
    """The decisions of `out` equal those of `expected` bit for bit, ties included.

    One exemption, for exactly representable inputs: two tokens whose score is equal and whose
    distances to the earlier seeds are the same numbers in another order are tied in exact
    arithmetic, but z is a product in that order and rounds differently. Where `out` and `expected`
    part at such a tie, the rest of this image's seeds is left to `assert_valid_decisions`.

    Raises:
        AssertionError: names the decision and the first place that differs.
    """
    for name in ("knn", "parent"):
        _assert_equal(name, getattr(out.decisions, name), getattr(expected.decisions, name))
    pairs = zip(_images(x, out, token_mask), _images(x, expected, token_mask), strict=True)
    for mine, other in pairs:
        a, b = mine.decisions.seeds, other.decisions.seeds
        if torch.equal(a, b):
            _assert_equal("counts", mine.decisions.counts, other.decisions.counts)
            continue
        step = int((a != b).nonzero()[0])
        if not _permuted_tie(mine, step, int(a[step]), int(b[step])):
            raise AssertionError(
                f"image {mine.index}: seed {step} is {int(a[step])}, expected {int(b[step])}"
            )


def _assert_equal(name: str, got: Tensor, expected: Tensor) -> None:
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


def _permuted_tie(image: _Image, step: int, a: int, b: int) -> bool:
    """Whether tokens a and b are tied at `step` but reached z by factors in another order."""
    if min(a, b) < 0:
        return False
    knn, parent = image.decisions.knn, image.decisions.parent
    distance = squared_distance_bounds(image.x, 0.0, 0.0)
    distance = (distance.lo + distance.hi) / 2

    def score_terms(i):
        far = distance[i][image.ok].max() if parent[i] < 0 else distance[i, parent[i]]
        return [*distance[i, knn[i][knn[i] >= 0]].round().tolist(), far.round().item()]

    history = [distance[i, image.decisions.seeds[:step]].round() for i in (a, b)]
    return (
        score_terms(a) == score_terms(b)
        and not torch.equal(*history)
        and torch.equal(history[0].sort().values, history[1].sort().values)
    )


def _images(x: Tensor, out: Clusters, token_mask: Tensor | None):
    """Each image of a result, its features in float64."""
    d = out.decisions
    x = x.detach().reshape(*out.labels.shape, x.shape[-1]).double()
    valid = (
        torch.ones(out.labels.shape, dtype=torch.bool, device=x.device)
        if token_mask is None
        else token_mask.reshape(out.labels.shape)
    )
    for b in range(d.counts.shape[0]):
        if out.cu_seqlens is None:
            span = b
        else:
            span = slice(int(out.cu_seqlens[b]), int(out.cu_seqlens[b + 1]))
        ok = valid[span] & x[span].isfinite().all(-1)
        features = torch.where(ok[:, None], x[span], 0)
        yield _Image(
            b, features, ok, Decisions(d.knn[span], d.parent[span], d.seeds[b], d.counts[b])
        )


def _judge_image(image: _Image, config, roundoff: float, input_roundoff: float) -> None:
    d, ok = image.decisions, image.ok
    for field in fields(d):
        value = getattr(d, field.name)
        assert value.dtype == torch.int64, f"{field.name} is {value.dtype}, expected int64"
    seeds, count = d.seeds.tolist(), int(d.counts)
    assert 0 <= count <= config.max_clusters, f"counts is {count}"
    assert all(s == -1 for s in seeds[count:]), f"seeds after the first {count} are not all -1"
    assert (d.knn[~ok] == -1).all(), "a token that takes no part has neighbours"
    assert (d.parent[~ok] == -1).all(), "a token that takes no part has a parent"
    if not ok.any():
        assert count == 0, f"counts is {count} without tokens"
        return

    # Work on the tokens that take part; a table maps positions to the compact numbering.
    position = ok.nonzero()[:, 0]
    compact = torch.full((ok.shape[0] + 1,), -2, device=ok.device)
    compact[position] = torch.arange(position.shape[0], device=ok.device)
    compact[-1] = -1
    knn, parent = compact[d.knn[ok]], compact[d.parent[ok]]
    seeds = [int(compact[s]) for s in seeds[:count]]
    for name, value in (("knn", knn), ("parent", parent), ("seeds", torch.tensor(seeds))):
        assert not (value == -2).any(), f"{name} names a token that takes no part"
    assert all(s >= 0 for s in seeds), "a seed below counts is -1"

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

    _judge_neighbours(distance, knn, config, position)
    scaled = distance * sigma
    density = _density_bounds(scaled, knn, roundoff)
    _judge_parents(distance, density, parent, position)
    score = _score_bounds(scaled, density, parent, config, roundoff)
    _judge_seeds(scaled, score, seeds, config, roundoff, position)


def _judge_neighbours(distance: Interval, knn: Tensor, config, position: Tensor) -> None:
    tokens, k = knn.shape
    found = knn >= 0
    candidates = tokens if config.include_self else tokens - 1
    expected = torch.arange(k, device=knn.device) < candidates
    assert (found == expected).all(), f"expected {min(k, candidates)} neighbours first, then -1"
    knn = knn[:, : min(k, candidates)]
    chosen = torch.zeros(tokens, tokens, dtype=torch.bool, device=knn.device)
    chosen.scatter_(1, knn, True)
    assert (chosen.sum(1) == knn.shape[1]).all(), "a token has the same neighbour twice"
    own = torch.eye(tokens, dtype=torch.bool, device=knn.device)
    if not config.include_self:
        assert not (chosen & own).any(), "a token is its own neighbour"
        chosen = chosen | own
    near = Interval(distance.lo.gather(1, knn), distance.hi.gather(1, knn))
    unsorted = near.lo[:, :-1] > near.hi[:, 1:]
    assert not unsorted.any(), f"neighbours of {_first(unsorted, position)} do not ascend"
    if knn.shape[1]:
        closest_left = distance.hi.masked_fill(chosen, torch.inf).amin(1)
        wrong = near.lo.amax(1) > closest_left
        assert not wrong.any(), (
            f"a neighbour of token {_first(wrong, position)} is not among the nearest"
        )


def _density_bounds(scaled: Interval, knn: Tensor, roundoff: float) -> Interval:
    found = knn >= 0
    count = found.sum(1).clamp(min=1)

    def mean(end):
        return torch.where(found, end.gather(1, knn.clamp(min=0)), 0).sum(1) / count

    average = scaled.rising(mean).widen((knn.shape[1] + 3) * roundoff)
    tiny = torch.finfo(torch.float32).tiny
    return average.falling(lambda m: torch.exp(-m)).widen(4 * roundoff, tiny).clamp(0, 1)


def _judge_parents(distance: Interval, density: Interval, parent: Tensor, position: Tensor) -> None:
    tokens = parent.shape[0]
    tops = (parent < 0).sum().item()
    assert tops == 1, f"expected one top token (parent -1), got {tops}"
    certain = density.lo[None, :] > density.hi[:, None]
    is_top = parent < 0
    dethroned = is_top & certain.any(1)
    assert not dethroned.any(), f"top token {_first(dethroned, position)} has a denser one"
    row = torch.arange(tokens, device=parent.device)
    target = parent.clamp(min=0)
    lower = ~is_top & ((density.hi[target] < density.lo) | (target == row))
    assert not lower.any(), f"parent of token {_first(lower, position)} is not of higher order"
    nearest = distance.hi.masked_fill(~certain, torch.inf).amin(1)
    wrong = ~is_top & (distance.lo[row, target] > nearest)
    assert not wrong.any(), f"parent of token {_first(wrong, position)} is not the nearest"
    hop = torch.where(is_top, row, parent)
    for _ in range(tokens.bit_length()):
        hop = hop[hop]
    assert is_top[hop].all(), "the parents form a cycle"


def _score_bounds(scaled: Interval, density: Interval, parent: Tensor, config, roundoff: float):
    row = torch.arange(parent.shape[0], device=parent.device)

    def delta(end):
        return torch.where(parent < 0, end.amax(1), end[row, parent.clamp(min=0)])

    score = (density * scaled.rising(delta)).widen(4 * roundoff)
    if config.score_norm is None:
        return score
    largest = Interval(score.lo.max(), score.hi.max())
    if largest.hi == 0:
        return score
    if largest.lo <= torch.finfo(torch.float32).tiny:
        # The maximum may or may not count as 0: raw and normalised scores are both possible.
        return Interval(torch.zeros_like(score.lo), score.hi.clamp(min=1))
    return Interval(score.lo / largest.hi, score.hi / largest.lo).widen(2 * roundoff).clamp(0, 1)


def _judge_seeds(scaled: Interval, score: Interval, seeds: list[int], config, roundoff, position):
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
        assert mass >= config.min_mass, f"{where} has less than min_mass"
        alpha = alpha_bounds(scaled[seed], score, config, roundoff)
        rest = alpha.falling(lambda a: 1 - a).widen(0, roundoff).clamp(0, 1)
        scope = (scope * rest).widen(roundoff).clamp(0, 1)
        if config.distinct_seeds:
            eligible[seed] = False
        if step + 1 < len(seeds):
            left = scope.hi.mean() * (1 + summing)
            assert left > config.stop_residual, f"went on after {where} with mean scope {left:.9g}"
    if len(seeds) == config.max_clusters or not eligible.any():
        return
    if seeds and scope.lo.mean() * (1 - summing) <= config.stop_residual:
        return
    priority = (scope * score).widen(2 * roundoff)
    possible = eligible & (priority.hi >= priority.lo[eligible].max())
    small = [
        mask_of(seed).lo.sum() * (1 - summing) < config.min_mass
        for seed in possible.nonzero()[:, 0].tolist()
    ]
    assert any(small), f"stopped after {len(seeds)} seeds without a reason"


def _first(flags: Tensor, position: Tensor) -> int:
    """Position of the first token (row) that is flagged."""
    return int(position[flags.nonzero()[0, 0]])
