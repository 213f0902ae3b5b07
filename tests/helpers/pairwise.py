"""Grids of test cases in which every two values meet, without the full cross."""

import itertools


def pairwise(**axes) -> list[tuple]:
    """Return few cases that cover each pair of values of two axes.

    Most faults need one value, or two at once. The cases are the same in every call:

        @pytest.mark.parametrize("dtype, mode", pairwise(dtype=DTYPES, mode=("soft", "hard")))

    Args:
        axes: values of each parameter, in the order of the parameters.

    Returns:
        One tuple for each case.

    Raises:
        ValueError: there are fewer than two axes, or one has no values.
    """
    values = [list(axis) for axis in axes.values()]
    if len(values) < 2:
        raise ValueError(f"axes: expected at least 2, got {len(values)}")
    for name, axis in zip(axes, values, strict=True):
        if not axis:
            raise ValueError(f"{name}: expected at least one value, got none")
    # A pair is (axis, place of its value, later axis, place of its value).
    missing = dict.fromkeys(
        (a, i, b, j)
        for a, b in itertools.combinations(range(len(values)), 2)
        for i, j in itertools.product(range(len(values[a])), range(len(values[b])))
    )
    cases = []
    while missing:
        a, i, b, j = next(iter(missing))
        chosen = {a: i, b: j}
        for axis in range(len(values)):
            if axis not in chosen:
                places = range(len(values[axis]))
                # `max` takes the first of the best.
                chosen[axis] = max(
                    places, key=lambda p: len(_pairs(chosen, axis, p) & missing.keys())
                )
        for pair in [pair for pair in missing if _holds(chosen, pair)]:
            del missing[pair]
        cases.append(tuple(values[axis][chosen[axis]] for axis in range(len(values))))
    return cases


def _pairs(chosen: dict, axis: int, place: int) -> set:
    """Pairs of a new value with the values that are chosen."""
    return {
        (other, at, axis, place) if other < axis else (axis, place, other, at)
        for other, at in chosen.items()
    }


def _holds(chosen: dict, pair: tuple) -> bool:
    a, i, b, j = pair
    return chosen[a] == i and chosen[b] == j
