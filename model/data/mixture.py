"""Mixture of several data sets by weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from setok_kernels.config import check_number
from setokim.data.order import ENDLESS
from setokim.data.samples import Dataset, check_index, check_natural

# Items of a block, in which each data set has a fixed number of items in a random order.
_BLOCK = 1000


class Mixture:
    """An endless data set whose item i depends on the seed and on i only.

    In every thousand items each data set has its weight, up to rounding. Its own samples come in
    epochs: each once, in a random order of the epoch, before any comes again. A run that resumes at
    an item therefore continues the same sequence, on any number of processes.

    Args:
        datasets: data sets by name, at least one.
        weights: weights by the same names, above 0, relative to one another.
        seed: random seed of the orders.

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
        fractions = np.array([weights[name] for name in datasets], np.float64)
        self._counts = _whole(_BLOCK * fractions / fractions.sum())
        for name, count in zip(datasets, self._counts, strict=True):
            if not count:
                got = weights[name]
                raise ValueError(f"weights[{name!r}]: expected at least 1/1000 of all, got {got}")
        self._block: tuple[int, Any, Any] = (-1, None, None)
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """Data sets inside, for `contents_of`."""
        return tuple(self._datasets)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Any:
        check_index(index, len(self))
        block, offset = divmod(index, _BLOCK)
        if self._block[0] != block:
            self._block = (block, *self._sample_block(block))
        _, chosen, turns = self._block
        which = int(chosen[offset])
        dataset = self._datasets[which]
        number = block * int(self._counts[which]) + int(turns[offset])
        epoch, position = divmod(number, len(dataset))
        return dataset[self._at(which, epoch, position)]

    def _sample_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the data set of each item of a block, and how many of that set come before it."""
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
    """Round to whole numbers of the same sum, the largest remainders up."""
    low = np.floor(numbers).astype(np.int64)
    missing = round(numbers.sum()) - int(low.sum())
    low[np.argsort(low - numbers, kind="stable")[:missing]] += 1
    return low
