"""Counts at a number of tokens that was not counted: between the counted ones, or beyond them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

# Terms of a count by the number of tokens: in general, and for launches.
_TERMS: tuple[Callable[[float], float], ...] = (lambda n: 1.0, float, lambda n: float(n) ** 2)
_LAUNCH_TERMS: tuple[Callable[[float], float], ...] = (lambda n: 1.0, math.log2, float)

# Relative errors that data alone make of counts.
_NOISE = 0.015


def parabola(cases: dict[int, dict], size: int, fields: tuple[str, ...]) -> dict:
    """Return the case of `size` tokens by a parabola through three counted ones.

    Args:
        cases: three cases by their number of tokens.
        size: number of tokens.
        fields: fields of a kernel that grow with its work; the others are those of the first case.

    Raises:
        ValueError: the cases have different kernels.
    """
    weights = [
        math.prod((size - b) / (a - b) for b in cases if b != a) for a in cases
    ]  # of Lagrange
    first, *_ = cases.values()
    if any(set(case["kernels"]) != set(first["kernels"]) for case in cases.values()):
        sizes = ", ".join(map(str, sorted(cases)))
        raise ValueError(
            f"counts: expected the same kernels at {sizes} tokens, got different ones; "
            f"bench/kernel_counts.py counts {size} tokens"
        )
    kernels = {}
    for name, nearest in first["kernels"].items():
        values = [case["kernels"][name] for case in cases.values()]
        sums = {
            f: sum(w * v.get(f, 0) for w, v in zip(weights, values, strict=True)) for f in fields
        }
        kernels[name] = nearest | sums
    how = f"a parabola through {', '.join(map(str, sorted(cases)))} tokens"
    return first | {"how": how, "kernels": kernels}


def extrapolated(
    cases: dict[int, dict], size: int, fields: tuple[str, ...], launched: dict | None = None
) -> dict:
    """Return the case of `size` tokens, more than were counted.

    A count of one launch is a sum of a constant, a linear and a quadratic term of the number of
    tokens, none of them negative, so that noise of a linear count cannot grow into a wrong sign.

    Args:
        cases: at least two counted cases by their number of tokens.
        size: number of tokens.
        fields: fields of a kernel that grow with its work; the others are those of the largest
            case, or of `launched`.
        launched: case of the size that was launched but not run. Without it the number of launches
            is a sum of a constant, the logarithm of the number of tokens, and a linear term.

    Raises:
        ValueError: a launched kernel was counted at less than two sizes.
    """
    sizes = sorted(cases)
    largest = cases[sizes[-1]]
    known = largest if launched is None else launched
    kernels = {}
    for name in known["kernels"]:
        # A pass may take other kernels for fewer tokens.
        having = [n for n in sizes if name in cases[n]["kernels"]]
        if len(having) < 2:
            raise ValueError(
                f"counts: expected {name}, launched at {size} tokens, at two sizes or more, got it "
                f"at {having}"
            )
        values = [cases[n]["kernels"][name] for n in having]
        found = dict(known["kernels"][name], loops=values[-1]["loops"])
        launches = [v["launches"] for v in values]
        if launched is None:
            found["launches"] = fitted(having, launches, size, _LAUNCH_TERMS)
        for f in fields:
            if f == "launches" or (launched is not None and f in ("programs", "reached_bytes")):
                continue
            a_launch = [v[f] / n for v, n in zip(values, launches, strict=True)]
            found[f] = found["launches"] * fitted(having, a_launch, size, _TERMS)
        kernels[name] = found
    how = f"extrapolated from {', '.join(map(str, sizes))} tokens"
    return known | {"how": how, "kernels": kernels}


def fitted(
    sizes: list[int], values: list[float], size: int, terms: tuple[Callable[[float], float], ...]
) -> float:
    """Return the value at `size` of a sum of terms with weights that are not negative.

    Relative errors count. The sum has the fewest terms that come within `_NOISE` of the values,
    because more terms would carry noise far beyond the sizes.
    """
    if len(set(values)) == 1:
        return float(values[0])
    scale = np.maximum(np.abs(values), 1e-3 * np.max(np.abs(values)))
    # Each column is divided by its maximum, as squares and constants differ by many powers of ten.
    columns = np.array([[term(n) for term in terms] for n in sizes])
    heights = columns.max(0)
    left, right = columns / heights / scale[:, None], np.asarray(values) / scale
    best, error = None, math.inf
    for number in range(1, len(terms) + 1):
        for chosen in map(list, itertools.combinations(range(len(terms)), number)):
            weights, *_ = np.linalg.lstsq(left[:, chosen], right, rcond=None)
            wrong = float(np.abs(left[:, chosen] @ weights - right).max())
            if (weights >= 0).all() and wrong < error:
                best, error = (chosen, weights), wrong
        if error <= _NOISE:
            break
    chosen, weights = best
    return float(sum(w * terms[i](size) / heights[i] for i, w in zip(chosen, weights, strict=True)))
