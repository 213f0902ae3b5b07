"""Metrics as ratios of sums over resampled units, so that their uncertainty can be computed.

Nearly all metrics of benchmarks are a ratio Σ a / Σ b over independent units, or a sum of such
ratios: an accuracy (b = 1), cIoU (intersections over unions), F1 (2 hits over predicted and true).
A unit is what another test set would have more of: a question, an image, or the two questions of
MME about one image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class Ratio:
    """Ratio of two sums over the units of a table.

    Attributes:
        table: name of the table.
        numerators: (n,) float64, one for each unit.
        denominators: (n,) float64; 0 for a unit that does not count.
    """

    table: str
    numerators: np.ndarray
    denominators: np.ndarray


@dataclass(frozen=True, eq=False)
class Figure:
    """One metric with its definition.

    Attributes:
        definition: definition in one sentence.
        unit: what is resampled, in the singular; None for a metric without an interval.
        ratios: ratios that give the value by `form`.
        scale: factor, such as 100 for percent.
        empty: value of a ratio whose denominator is 0.
        form: "sum" for the sum of the ratios; "bleu" for the geometric mean of all ratios but the
            last, the precisions of n-grams, times min(1, exp(1 - the last ratio)), the length of
            the references over that of the texts; "pearson" for the correlation of x and y, from
            the means of x, y, xy, x² and y².
        reason: reason for the lack of an interval; empty with one.
    """

    definition: str
    unit: str | None = None
    ratios: tuple[Ratio, ...] = ()
    scale: float = 1.0
    empty: float = math.nan
    form: str = "sum"
    reason: str = ""

    def __post_init__(self):
        if self.form not in _FORMS:
            raise ValueError(f"form: expected one of {', '.join(_FORMS)}, got {self.form!r}")

    def values(self, sums: np.ndarray) -> np.ndarray:
        """Compute the metric from sums.

        Args:
            sums: (S, ratios, 2) sums of the numerators and denominators of each ratio.

        Returns:
            (S,).
        """
        whole = sums[..., 1]
        safe = np.where(whole == 0, 1.0, whole)
        ratios = np.where(whole == 0, self.empty, sums[..., 0] / safe)  # (S, ratios)
        return self.scale * _FORMS[self.form](ratios)

    @property
    def samples(self) -> int | None:
        """Number of units that count; None without units."""
        if not self.ratios:
            return None
        # Several ratios of one table, as of accuracy and accuracy+, share their units.
        counted: dict[str, np.ndarray] = {}
        for ratio in self.ratios:
            known = counted.get(ratio.table, False)
            counted[ratio.table] = known | (ratio.denominators != 0)
        return int(sum(flags.sum() for flags in counted.values()))

    def with_ratios(self, ratios: tuple[Ratio, ...]) -> Figure:
        """Return the same metric of other units."""
        return replace(self, ratios=ratios)


def _bleu(ratios: np.ndarray) -> np.ndarray:
    precisions, length = ratios[:, :-1], ratios[:, -1]
    brevity = np.exp(np.minimum(0.0, 1 - length))
    return brevity * precisions.prod(1) ** (1 / precisions.shape[1])


def _pearson(means: np.ndarray) -> np.ndarray:
    x, y, xy, xx, yy = means.T
    spread = np.clip(xx - x**2, 0, None) * np.clip(yy - y**2, 0, None)
    safe = np.where(spread == 0, 1.0, spread)
    return np.where(spread == 0, math.nan, (xy - x * y) / np.sqrt(safe))


# Functions from (S, ratios) to (S,).
_FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sum": lambda ratios: ratios.sum(1),
    "bleu": _bleu,
    "pearson": _pearson,
}


class Figures(dict[str, float]):
    """Metrics by name, with the statistics of each unit behind them.

    It is a dictionary of values and can be read and written as one; `details` has a `Figure` for
    each, and `units` the names of the units of each table. Tables are resampled independently.
    `left_out` has the reason for each metric that could not be computed.
    """

    def __init__(self):
        super().__init__()
        self.details: dict[str, Figure] = {}
        self.units: dict[str, tuple[str, ...]] = {}
        self.left_out: dict[str, str] = {}

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> Figures:
        """Return metrics as they are; a plain dictionary becomes constants without definitions."""
        found = cls()
        if isinstance(metrics, Figures):
            found.include(metrics)
            metrics = {name: one for name, one in metrics.items() if name not in found}
        for name, value in metrics.items():
            found.constant(name, value, "not stated", "it has no statistics of its samples")
        return found

    def table(self, units: Sequence[str], unit: str = "question", name: str = "") -> Table:
        """Add a table of units.

        Args:
            units: names of the units, all different.
            unit: what a unit is, in the singular.
            name: name of the table, unique.

        Raises:
            ValueError: there is such a table, or a name occurs twice.
        """
        if name in self.units:
            raise ValueError(f"name: expected a new table, got {name!r} again")
        if len(set(units)) != len(units):
            raise ValueError(f"units: expected different names, got {len(units)} with duplicates")
        self.units[name] = tuple(units)
        return Table(self, name, unit)

    def add(self, name: str, value: float, figure: Figure) -> None:
        """Add a metric.

        Raises:
            ValueError: there is one of that name.
        """
        if name in self:
            raise ValueError(f"name: expected a new metric, got {name!r} again")
        self[name] = value
        self.details[name] = figure

    def constant(
        self, name: str, value: float, definition: str, reason: str = "it is a count"
    ) -> None:
        """Add a metric without an interval.

        Args:
            name: name of the metric.
            value: its value.
            definition: definition in one sentence.
            reason: reason for the lack of an interval.
        """
        self.add(name, value, Figure(definition, reason=reason))

    def total(self, name: str, parts: Iterable[str], definition: str) -> None:
        """Add the sum of metrics that this has already, of one scale.

        Args:
            name: name of the metric.
            parts: names of the summands; none for a total of 0.
            definition: definition in one sentence.
        """
        parts = list(parts)
        value = sum(self[part] for part in parts)
        if not parts:
            self.constant(name, 0.0, definition, "no part of it was evaluated")
            return
        first = self.details[parts[0]]
        ratios = tuple(ratio for part in parts for ratio in self.details[part].ratios)
        self.add(name, value, replace(first, definition=definition, ratios=ratios))

    def include(self, other: Figures, part: str = "") -> None:
        """Add the tables and metrics of another.

        Args:
            other: metrics to add.
            part: ending of the names of its metrics and tables, after a slash; empty for none.

        Raises:
            ValueError: there is a table or a metric of that name.
        """
        ending = f"/{part}" if part else ""
        for name, units in other.units.items():
            if name + ending in self.units:
                raise ValueError(f"other: expected new tables, got {name + ending!r} again")
            self.units[name + ending] = units
        self.left_out |= {name + ending: reason for name, reason in other.left_out.items()}
        for name, figure in other.details.items():
            ratios = tuple(replace(one, table=one.table + ending) for one in figure.ratios)
            self.add(name + ending, other[name], figure.with_ratios(ratios))

    def __or__(self, other: Mapping[str, float]) -> Figures:
        """Return both, of equal names those of `other`.

        Metrics of a plain dictionary become constants without definitions.
        """
        found = Figures.of(self)
        for name in other:
            found.pop(name, None)
            found.details.pop(name, None)
        found.include(Figures.of(other))
        return found

    def rename_units(self, units: Sequence[str]) -> None:
        """Replace the names of the units of all tables of that length, which were indices."""
        for name, known in self.units.items():
            if len(known) == len(units):
                self.units[name] = tuple(units)


class Table:
    """Units of a table, to which metrics are added; made by `Figures.table`."""

    def __init__(self, figures: Figures, name: str, unit: str):
        self._figures, self._name, self._unit = figures, name, unit

    def mean(
        self,
        name: str,
        values: Sequence[float],
        definition: str,
        where: Sequence[bool] | None = None,
        scale: float = 1.0,
    ) -> None:
        """Add the mean of a value of each unit.

        Args:
            name: name of the metric.
            values: one number for each unit; ignored where `where` is false.
            definition: definition in one sentence.
            where: flags of the units that count; None for all.
            scale: factor of the mean.

        Raises:
            ValueError: no unit counts, or there is not one value for each unit.
        """
        flags = [True] * len(values) if where is None else where
        counts = np.asarray(flags, np.float64)
        numbers = np.where(counts != 0, np.asarray(values, np.float64), 0.0)
        if not counts.any():
            raise ValueError(f"{name}: expected at least one {self._unit}, got none")
        self.ratio(name, numbers, counts, definition, scale)

    def ratio(
        self,
        name: str,
        numerators: Sequence[float],
        denominators: Sequence[float],
        definition: str,
        scale: float = 1.0,
        empty: float = math.nan,
    ) -> None:
        """Add a ratio of sums; `mean` is that of equal weights.

        Args:
            name: name of the metric.
            numerators: one number for each unit.
            denominators: one number for each unit.
            definition: definition in one sentence.
            scale: factor of the ratio.
            empty: ratio of 0 to 0.

        Raises:
            ValueError: there is not one number for each unit.
        """
        ratio = self._ratio(name, numerators, denominators)
        # Without the rounding of partial sums, so that the order of the units does not matter.
        whole = math.fsum(ratio.denominators)
        value = scale * (math.fsum(ratio.numerators) / whole if whole else empty)
        self._figures.add(name, value, Figure(definition, self._unit, (ratio,), scale, empty))

    def bleu(
        self,
        name: str,
        value: float,
        shared: Sequence[Sequence[float]],
        given: Sequence[Sequence[float]],
        lengths: Sequence[float],
        reference_lengths: Sequence[float],
        definition: str,
        scale: float = 1.0,
    ) -> None:
        """Add BLEU over all texts together, the product of a brevity penalty and precisions.

        Args:
            name: name of the metric.
            value: its value, which smoothing may change.
            shared: numbers by length of the n-grams that each text shares with its references.
            given: numbers by length of the n-grams of each text.
            lengths: number of words of each text.
            reference_lengths: number of words of the reference of each text.
            definition: definition in one sentence.
            scale: factor of the intervals, which `value` has already.

        Raises:
            ValueError: there is not one number for each unit.
        """
        pairs = [*zip(shared, given, strict=True), (reference_lengths, lengths)]
        ratios = tuple(self._ratio(name, *pair) for pair in pairs)
        figure = Figure(definition, self._unit, ratios, scale, empty=0.0, form="bleu")
        self._figures.add(name, value, figure)

    def correlation(
        self, name: str, value: float, x: Sequence[float], y: Sequence[float], definition: str
    ) -> None:
        """Add Pearson's correlation of two numbers of each unit.

        Args:
            name: name of the metric.
            value: its value.
            x: one number for each unit.
            y: one number for each unit.
            definition: definition in one sentence.

        Raises:
            ValueError: there is not one pair of numbers for each unit.
        """
        a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
        # Around the means, where squares lose no digits.
        a, b = a - a.mean(), b - b.mean()
        ones = np.ones(len(a))
        ratios = tuple(self._ratio(name, one, ones) for one in (a, b, a * b, a * a, b * b))
        self._figures.add(name, value, Figure(definition, self._unit, ratios, form="pearson"))

    def _ratio(
        self, name: str, numerators: Sequence[float], denominators: Sequence[float]
    ) -> Ratio:
        a, b = (np.asarray(values, np.float64) for values in (numerators, denominators))
        number = len(self._figures.units[self._name])
        if a.shape != (number,) or b.shape != (number,):
            raise ValueError(f"{name}: expected {number} values, got {a.shape} and {b.shape}")
        return Ratio(self._name, a, b)
