"""Comparison of the metrics of two runs of one benchmark on the same samples."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from setokim.evaluation.figure_files import read_figures
from setokim.evaluation.figures import Figures, Ratio
from setokim.evaluation.resampling import RESAMPLES, Difference, compare_figures

# Units that an error names.
_NAMED = 3


def compare_folders(
    one: str | Path, other: str | Path, resamples: int = RESAMPLES
) -> tuple[str, Figures, Figures, dict[str, Difference]]:
    """Compare two folders of `setok eval`.

    Args:
        one: folder of the first run.
        other: folder of the second run.
        resamples: number of resamples and of permutations.

    Returns:
        Name of the benchmark, the metrics of both runs, and the difference of each metric that both
        have.

    Raises:
        OSError: a folder has no results.
        ValueError: a file is damaged, or the runs have other benchmarks, splits or samples.
    """
    (first, a), (second, b) = (read_figures(Path(folder)) for folder in (one, other))
    for name in ("benchmark", "split"):
        expected, got = getattr(first, name), getattr(second, name)
        if expected != got:
            raise ValueError(f"B: expected the {name} of A, {expected!r}, got {got!r}")
    return first.benchmark, a, b, compare_figures(a, _aligned(a, b), resamples)


def _aligned(one: Figures, other: Figures) -> Figures:
    """Return `other` with its units in the order of those of `one`.

    Raises:
        ValueError: the units differ.
    """
    _check_names("tables", one.units, other.units)
    found, orders = Figures(), {}
    for table, units in one.units.items():
        _check_names("samples", units, other.units[table])
        place = {unit: index for index, unit in enumerate(other.units[table])}
        orders[table] = np.array([place[unit] for unit in units], np.int64)
        found.table(units, name=table)
    for name, figure in other.details.items():
        ratios = tuple(
            Ratio(r.table, r.numerators[orders[r.table]], r.denominators[orders[r.table]])
            for r in figure.ratios
        )
        found.add(name, other[name], figure.with_ratios(ratios))
    return found


def _check_names(what: str, first: Iterable[str], second: Iterable[str]) -> None:
    known = {"A": set(first), "B": set(second)}
    for side, other in (("B", "A"), ("A", "B")):
        if lacking := sorted(known[other] - known[side]):
            named = ", ".join(map(repr, lacking[:_NAMED]))
            raise ValueError(
                f"B: expected the {what} of A with the same questions and facts, got others: "
                f"{side} lacks {len(lacking)} of {len(known[other])}, such as {named}"
            )
