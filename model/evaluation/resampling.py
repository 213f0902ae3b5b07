"""Bootstrap intervals of metrics, and tests whether those of two runs differ.

Units are resampled with replacement within each table, and every metric of a resample is computed
from the sums over its units (B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993).
All resamples of a table are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from setokim.evaluation.figures import Figure, Figures

RESAMPLES = 1000
CONFIDENCE = 0.95
# Intervals of one run never change.
SEED = 0
# Elements of a block of resamples, whose memory is limited by it.
_BLOCK = 1 << 22
# Digits of an interval: rounding of matrix products depends on the number of threads.
_DIGITS = 10

Interval = tuple[float, float]
# Function from a generator, a number of resamples and one of units to the weights of the units.
_Sample = Callable[[np.random.Generator, int, int], np.ndarray]


@dataclass(frozen=True)
class Difference:
    """Difference of a metric between two runs on the same units.

    Attributes:
        difference: value of the first run minus that of the second.
        interval: bootstrapped interval of the difference; None if it has none.
        p_value: two-sided p-value of the paired permutation test; None if there is none.
    """

    difference: float
    interval: Interval | None
    p_value: float | None


def bootstrap_intervals(
    figures: Figures, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Interval]:
    """Compute the percentile interval of each metric that has units.

    A resample in which a metric is 0 / 0 does not count for it.

    Args:
        figures: metrics with their units.
        resamples: number of resamples, at least 2.
        seed: random seed.

    Returns:
        Lower and upper end by name; of metrics with units only.
    """
    sums = _Sums([figures], _bootstrap_counts, resamples, seed)
    found = {}
    for name, figure in figures.details.items():
        if figure.ratios and (interval := _percentiles(sums.values(0, name, figure))) is not None:
            found[name] = interval
    return found


def compare_figures(
    one: Figures, other: Figures, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Difference]:
    """Compare the metrics of two runs on the same units, in pairs.

    The interval of a difference is bootstrapped: each resample has the same units of both runs.
    The p-value is that of a permutation test: under the null hypothesis the two answers to a unit
    may be exchanged. It is (1 + k) / (1 + resamples), with k the number of permutations whose
    difference is at least as large.

    Args:
        one: metrics of the first run.
        other: metrics of the second run, with the same units in the same order.
        resamples: number of resamples and of permutations.
        seed: random seed.

    Returns:
        Difference of each metric that both have.

    Raises:
        ValueError: the units differ.
    """
    if one.units != other.units:
        raise ValueError("other: expected the units of the first run, got others")
    names = [name for name in one if name in other]
    pairs = [one, other]
    sums = _Sums(pairs, _bootstrap_counts, resamples, seed)
    swapped = _Sums(pairs, _exchanges, resamples, seed + 1)
    totals = [_exact(run) for run in pairs]
    found = {}
    for name in names:
        figure, second = one.details[name], other.details[name]
        difference = one[name] - other[name]
        if len(figure.ratios) != len(second.ratios) or not figure.ratios:
            found[name] = Difference(difference, None, None)
            continue
        spread = sums.values(0, name, figure) - sums.values(1, name, second)
        # Exchanged units of A come from B: S_A + Σ s (b - a), and S_B - Σ s (b - a).
        null = [
            figure.values(totals[0][name] + swapped.moved(name)),
            second.values(totals[1][name] - swapped.moved(name)),
        ]
        found[name] = Difference(
            difference, _percentiles(spread), _p_value(null[0] - null[1], difference)
        )
    return found


class _Sums:
    """Sums of all columns over the units of each resample."""

    def __init__(self, runs: Sequence[Figures], sample: _Sample, resamples: int, seed: int):
        # Sums of the two columns of each ratio, by run, name of the metric and index of the ratio.
        self._columns: dict[tuple[int, str, int], np.ndarray] = {}
        for number, (table, units) in enumerate(sorted(runs[0].units.items())):
            keys, columns = [], []
            for run, figures in enumerate(runs):
                for name, figure in figures.details.items():
                    for index, ratio in enumerate(figure.ratios):
                        if ratio.table == table:
                            keys.append((run, name, index))
                            columns += [ratio.numerators, ratio.denominators]
            if not columns or not units:
                continue
            generator = np.random.default_rng([seed, number])
            found = _products(np.stack(columns, 1), sample, resamples, generator)
            for place, key in enumerate(keys):
                self._columns[key] = found[:, 2 * place : 2 * place + 2]

    def _of(self, run: int, name: str) -> np.ndarray:
        """Return (resamples, ratios, 2) sums."""
        parts: list[np.ndarray] = []
        while (key := (run, name, len(parts))) in self._columns:
            parts.append(self._columns[key])
        return np.stack(parts, 1)

    def values(self, run: int, name: str, figure: Figure) -> np.ndarray:
        """Return the metric of each resample, (resamples,)."""
        return figure.values(self._of(run, name))

    def moved(self, name: str) -> np.ndarray:
        """Return what the exchanged units of a pair of runs add to the first, as `_of`."""
        return self._of(1, name) - self._of(0, name)


def _products(
    columns: np.ndarray, sample: _Sample, resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """Multiply the weights of the units, (resamples, n), by columns (n, k), block by block."""
    number = len(columns)
    block = max(1, _BLOCK // number)
    return np.concatenate(
        [
            sample(generator, min(block, resamples - start), number) @ columns
            for start in range(0, resamples, block)
        ]
    )


def _bootstrap_counts(generator: np.random.Generator, rows: int, number: int) -> np.ndarray:
    """Return how often each resample has each unit, (rows, number) float64."""
    drawn = generator.integers(number, size=(rows, number))
    drawn += number * np.arange(rows)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=rows * number)
    return counts.reshape(rows, number).astype(np.float64)


def _exchanges(generator: np.random.Generator, rows: int, number: int) -> np.ndarray:
    """Return which units are exchanged, (rows, number) float64 of 0 and 1."""
    return generator.integers(2, size=(rows, number)).astype(np.float64)


def _exact(figures: Figures) -> Mapping[str, np.ndarray]:
    """Return the sums over all units, (1, ratios, 2) by name of the metric."""
    return {
        name: np.array([[[r.numerators.sum(), r.denominators.sum()] for r in figure.ratios]])
        for name, figure in figures.details.items()
        if figure.ratios
    }


def _percentiles(values: np.ndarray) -> Interval | None:
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(f"{low:.{_DIGITS}g}"), float(f"{high:.{_DIGITS}g}")


def _p_value(null: np.ndarray, difference: float) -> float | None:
    if not np.isfinite(difference):
        return None
    known = null[np.isfinite(null)]
    # Equal differences are rounded differently.
    as_large = np.abs(known) >= abs(difference) * (1 - 1e-9) - 1e-12
    return float((1 + as_large.sum()) / (1 + len(known)))
