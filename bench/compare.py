"""Compare two results of one suite, and fail on a regression larger than the noise.

    python bench/compare.py OLD.json NEW.json

Times are divided by the yardstick of the same row and round, so that a slower clock or a busy
machine affects both. Medians have bootstrap intervals. An implementation has regressed if its
median ratio grew by more than the tolerance and by more than both intervals together. A missing or
wrong result also counts as a regression.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from setok_bench.results import load_result, row_key, timed
from setok_bench.tables import duration, shape_text

TOLERANCE = 0.10
_RESAMPLES = 400
# Fraction of the bootstrapped medians outside on either side: a 99 % interval.
_TAIL = 0.005


@dataclass(frozen=True)
class Change:
    """Change of one implementation of one row.

    Attributes:
        name: name of row and implementation.
        ratio: new over old median, of times over the yardstick if the row has one.
        noise: relative half-width of both intervals together.
        regressed: flag: slower by more than noise and tolerance.
        text: both medians as text.
    """

    name: str
    ratio: float
    noise: float
    regressed: bool
    text: str


def compare(old: dict, new: dict, tolerance: float = TOLERANCE) -> tuple[list[Change], list[str]]:
    """Return the changes of our implementations, and lines for missing or wrong results.

    Raises:
        ValueError: the results have different devices or no common row.
    """
    names = [result["device"]["name"] for result in (old, new)]
    if names[0] != names[1]:
        raise ValueError(f"NEW: expected a result of {names[0]!r}, got one of {names[1]!r}")
    rows = {row_key(row): row for row in new["rows"]}
    changes, problems = [], []
    for before in old["rows"]:
        after = rows.get(row_key(before))
        for name, was in timed(before).items():
            if was["role"] not in ("ours", "reference"):
                continue
            title = f"{before['op']} {before['group']} {shape_text(before['shape'])} {name}"
            if after is None or name not in after["contenders"]:
                problems.append(f"{title}: not in the new result")
            elif (status := after["contenders"][name])["status"] != "timed":
                problems.append(f"{title}: {status['status']}, {status['reason']}")
            else:
                changes.append(_change(title, before, after, name, tolerance))
    if not changes and not problems:
        raise ValueError("NEW: expected some row of OLD, got none")
    return changes, problems


def _change(title: str, before: dict, after: dict, name: str, tolerance: float) -> Change:
    was, now = relative_samples(before, name), relative_samples(after, name)
    ratio = statistics.median(now) / statistics.median(was)
    noise = math.hypot(half_width(was), half_width(now))
    text = " -> ".join(duration(timed(row)[name]["p50_s"]) for row in (before, after))
    return Change(title, ratio, noise, ratio > 1 + max(tolerance, noise), text)


def relative_samples(row: dict, name: str) -> list[float]:
    """Return the samples of an implementation, divided by the yardstick's of the same round."""
    times = timed(row)
    samples = times[name]["samples_s"]
    if row["yardstick"] not in times:
        return samples
    return [s / y for s, y in zip(samples, times[row["yardstick"]]["samples_s"], strict=True)]


def half_width(samples: Sequence[float]) -> float:
    """Return half of the median's bootstrap interval, relative to the median."""
    generator = random.Random(0)
    medians = sorted(
        statistics.median(generator.choices(samples, k=len(samples))) for _ in range(_RESAMPLES)
    )
    low, high = medians[int(_TAIL * _RESAMPLES)], medians[-1 - int(_TAIL * _RESAMPLES)]
    return (high - low) / 2 / statistics.median(samples)


def main() -> int:
    """Print every change, and return 1 on a regression."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="default: %(default)s")
    args = parser.parse_args()
    try:
        changes, problems = compare(load_result(args.old), load_result(args.new), args.tolerance)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for change in changes:
        verdict = "REGRESSED" if change.regressed else "ok"
        print(
            f"{verdict:10} {change.ratio - 1:+7.1%} (noise {change.noise:.1%})  {change.name}: "
            f"{change.text}"
        )
    for problem in problems:
        print(f"{'MISSING':10} {problem}")
    regressed = sum(change.regressed for change in changes) + len(problems)
    print(f"{len(changes)} compared, {regressed} regressed")
    return 1 if regressed else 0


if __name__ == "__main__":
    sys.exit(main())
