"""Several data sets as one, each as often as its weight says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from setok_kernels.config import check_number
from setokim.data.order import ENDLESS
from setokim.data.samples import Dataset, check_index, check_natural

# Positions in which each data set comes a fixed number of times, in an order drawn anew.
_BLOCK = 1000


class Mixture:
    """An endless data set whose item i depends on the seed and on i only.

    In every thousand items each data set comes as often as its weight says, but for rounding. Its
    own samples are gone through in epochs: each once, in an order drawn for the epoch, before any
    comes again. So a run that resumes at an item goes on where it was, on however many processes.

    Args:
        datasets: by name, at least one.
        weights: of the same names, above 0, relative to one another.
        seed: other seeds give other orders.

    Raises:
        TypeError, ValueError: names or numbers do not fit, a data set is empty, or its weight is
            less than a thousandth of all.
    """

    def __init__(
        self, datasets: Mapping[str, Dataset], weights: Mapping[str, float], seed: int = 0
    ):
        if not datasets or datasets.keys() != weights.keys():
            expected = f"those of the data sets, {sorted(datasets)}"
            raise ValueError(f"weights: expected {expected}, got {sorted(weights)}")
        check_natural("seed", seed)
        for name, dataset in datasets.items():
            check_number(f"weights[{name!r}]", weights[name], above=0)
            if not len(dataset):
                raise ValueError(f"datasets[{name!r}]: expected at least one sample, got none")
        self._datasets = list(datasets.values())
        self._seed = seed
        shares = np.array([weights[name] for name in datasets], np.float64)
        self._counts = _whole(_BLOCK * shares / shares.sum())
        for name, count in zip(datasets, self._counts, strict=True):
            if not count:
                got = weights[name]
                raise ValueError(f"weights[{name!r}]: expected a thousandth of all, got {got}")
        self._block: tuple[int, Any, Any] = (-1, None, None)
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Any:
        check_index(index, len(self))
        block, place = divmod(index, _BLOCK)
        if self._block[0] != block:
            self._block = (block, *self._draw(block))
        _, chosen, turns = self._block
        which = int(chosen[place])
        dataset = self._datasets[which]
        epoch, position = divmod(block * int(self._counts[which]) + int(turns[place]), len(dataset))
        return dataset[self._at(which, epoch, position)]

    def _draw(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Which data set each place of a block is of, and how many of it come before there."""
        chosen = np.repeat(np.arange(len(self._counts)), self._counts)
        np.random.default_rng((self._seed, 0, block)).shuffle(chosen)
        turns = np.zeros(_BLOCK, np.int64)
        for which, count in enumerate(self._counts):
            turns[chosen == which] = np.arange(count)
        return chosen, turns

    def _at(self, which: int, epoch: int, position: int) -> int:
        length = len(self._datasets[which])
        if length >= ENDLESS:
            return position
        if self._epochs.get(which, (-1, None))[0] != epoch:
            generator = np.random.default_rng((self._seed, 1, which, epoch))
            self._epochs[which] = epoch, generator.permutation(length)
        return int(self._epochs[which][1][position])


def _whole(numbers: np.ndarray) -> np.ndarray:
    """Whole numbers of the same sum, the largest remainders rounded up."""
    low = np.floor(numbers).astype(np.int64)
    missing = round(numbers.sum()) - int(low.sum())
    low[np.argsort(low - numbers, kind="stable")[:missing]] += 1
    return low
