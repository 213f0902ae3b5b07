"""Compares two results of one suite, and fails on a regression that is more than noise.

    python bench/compare.py OLD.json NEW.json

Each time is taken over the yardstick of its row and round, so that a slower clock or a busy machine
meets both. Its median has an interval by bootstrap. A contender has regressed when its median ratio
grew by more than the tolerance and more than both intervals together; what is new, gone, or gives a
wrong result now is named too, and the last two of these count as regressions.
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
# Of the bootstrapped medians on either side: an interval of 99 %.
_TAIL = 0.005


@dataclass(frozen=True)
class Change:
    """Of one contender of one row.

    Attributes:
        name: of row and contender.
        ratio: new over old, of times over the yardstick where the row has one.
        noise: relative half-width of both intervals together.
        regressed: whether it is slower by more than noise and tolerance.
        text: the medians themselves.
    """

    name: str
    ratio: float
    noise: float
    regressed: bool
    text: str


def compare(old: dict, new: dict, tolerance: float = TOLERANCE) -> tuple[list[Change], list[str]]:
    """Changes of contenders of ours, and what is missing or wrong in the new result.

    Raises:
        ValueError: the results are of other devices or have no row in common.
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
    """Samples of a contender, over those of the yardstick of the same round where there is one."""
    times = timed(row)
    samples = times[name]["samples_s"]
    if row["yardstick"] not in times:
        return samples
    return [s / y for s, y in zip(samples, times[row["yardstick"]]["samples_s"], strict=True)]


def half_width(samples: Sequence[float]) -> float:
    """Half of the interval of the median, relative to it, by bootstrap."""
    draw = random.Random(0)
    medians = sorted(
        statistics.median(draw.choices(samples, k=len(samples))) for _ in range(_RESAMPLES)
    )
    low, high = medians[int(_TAIL * _RESAMPLES)], medians[-1 - int(_TAIL * _RESAMPLES)]
    return (high - low) / 2 / statistics.median(samples)


def main() -> int:
    """Prints every change; returns 1 on a regression."""
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
