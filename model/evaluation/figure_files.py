"""Files of metrics with their definitions and intervals, and of the statistics behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from setok_kernels import __version__
from setokim.data.records import read_json
from setokim.evaluation.figures import Figure, Figures, Ratio
from setokim.evaluation.resampling import CONFIDENCE, RESAMPLES, SEED, bootstrap_intervals
from setokim.utils.files import write_file
from setokim.utils.json_text import to_json

METRICS = "metrics.json"
FIGURES = "figures.json"
STATISTICS = "statistics.json"
# Increased with each change of a rule that gives other values for the same answers.
RULES = 1


@dataclass(frozen=True)
class Scored:
    """What was scored.

    Attributes:
        benchmark: name of the benchmark; empty for one without a name.
        split: split of its data; None for data without splits.
        samples: number of samples with an answer.
        missing: number of samples of the split that were not asked or have no answer.
        broken: number of samples that could not be read.
    """

    benchmark: str = ""
    split: str | None = None
    samples: int = 0
    missing: int = 0
    broken: int = 0


def write_figures(folder: Path, figures: Figures, scored: Scored) -> dict[str, Any]:
    """Write metrics.json, figures.json and statistics.json.

    metrics.json has the values alone. figures.json has, for each metric, `value`, `interval` (lower
    and upper end, or null with a `reason`), `samples`, the number of units that count, `unit`, what
    they are, and `definition`; the reason for each metric left out; and what was scored by which
    version. statistics.json has the
    statistics of each unit, for `read_figures`.

    Args:
        folder: folder of the files.
        figures: metrics with their statistics.
        scored: what was scored.

    Returns:
        The content of figures.json.

    Raises:
        OSError: a file cannot be written.
    """
    intervals = bootstrap_intervals(figures)
    about = vars(scored) | {"scorer": f"setok-kernels {__version__}, rules {RULES}"}
    resampled = {"confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED}
    details = {
        name: _described(name, value, figures, intervals.get(name))
        for name, value in figures.items()
    }
    report = about | resampled | {"figures": details, "left_out": figures.left_out}
    plain = {
        "benchmark": scored.benchmark,
        "split": scored.split,
        "units": figures.units,
        "figures": {
            name: {
                "definition": figure.definition,
                "unit": figure.unit,
                "scale": figure.scale,
                "empty": _plain(figure.empty),
                "form": figure.form,
                "reason": figure.reason,
                "value": _plain(figures[name]),
                "ratios": [
                    [
                        ratio.table,
                        *(_numbers(one) for one in (ratio.numerators, ratio.denominators)),
                    ]
                    for ratio in figure.ratios
                ],
            }
            for name, figure in figures.details.items()
        },
    }
    # Statistics first: folders with metrics have them.
    write_file(folder / STATISTICS, to_json(plain) + "\n")
    write_file(folder / FIGURES, to_json(report, indent=2) + "\n")
    write_file(folder / METRICS, to_json(figures, indent=2) + "\n")
    return report


def read_figures(folder: Path) -> tuple[Scored, Figures]:
    """Read what `write_figures` wrote.

    Args:
        folder: folder of the files.

    Returns:
        Benchmark and split, without the numbers of samples, and the metrics.

    Raises:
        OSError: there is no statistics.json, or it cannot be read.
        ValueError: it holds something else.
    """
    path = folder / STATISTICS
    plain = read_json(path)
    try:
        figures = Figures()
        for name, units in plain["units"].items():
            figures.table(units, name=name)
        for name, one in plain["figures"].items():
            ratios = tuple(
                Ratio(table, *(np.array(values, np.float64) for values in pair))
                for table, *pair in one["ratios"]
            )
            for ratio in ratios:
                number = len(figures.units[ratio.table])
                if not ratio.numerators.shape == ratio.denominators.shape == (number,):
                    raise ValueError(f"{name} without one number for each of {number} units")
            kept = {key: one[key] for key in ("definition", "unit", "scale", "form", "reason")}
            figures.add(
                name, _read(one["value"]), Figure(ratios=ratios, empty=_read(one["empty"]), **kept)
            )
        return Scored(plain["benchmark"], plain["split"]), figures
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: expected statistics of metrics, got {error!r}") from error


def _described(
    name: str, value: float, figures: Figures, interval: tuple[float, float] | None
) -> dict[str, Any]:
    figure = figures.details[name]
    found = {
        "value": _plain(value),
        "interval": interval,
        "samples": figure.samples,
        "unit": figure.unit,
        "definition": figure.definition,
    }
    if interval is None:
        found["reason"] = figure.reason or "no resample has a finite value"
    return found


def _numbers(values: np.ndarray) -> list[float | int | None]:
    """Return plain numbers, whole ones without a fraction, which is shorter."""
    return [int(one) if one.is_integer() else _plain(one) for one in values.tolist()]


def _plain(value: float) -> float | None:
    """Return a number as JSON has it, null for one that is not finite."""
    return value if math.isfinite(value) else None


def _read(value: float | None) -> float:
    return math.nan if value is None else value
