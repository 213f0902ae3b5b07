"""Which samples make up which batch: shuffled, split over processes, and resumable."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from setok_kernels.config import check_count
from setokim.data.samples import check_natural

# Data sets at least this long are never gone through, and a permutation would not fit in memory.
ENDLESS = 2**31


class Order:
    """A batch sampler for `torch.utils.data.DataLoader` that never ends.

    All processes together go through one sequence of positions: batch k of all `world` processes
    covers the positions from k · batch_size · world on, and process r takes the r-th stretch of
    batch_size among them. So 2 processes see in each step what 1 sees with batches twice as large.

    Each epoch, `length` positions, has every sample once, in an order that depends on the seed and
    the number of the epoch; a batch may span epochs. In endless data sets, of at least `ENDLESS`
    samples, sample p stands at position p, and shuffling has no effect.

    A `DataLoader` asks for batches ahead of time, so a run that resumes must count the batches it
    trained on and pass that number as `start`.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        start: int = 0,
        shuffle: bool = True,
    ):
        """Takes the settings.

        Args:
            length: Number of samples of the data set.
            batch_size: Samples of a batch of one process.
            rank: Which of the processes this is, from 0.
            world: Number of processes.
            seed: Other seeds give other orders.
            start: Number of the first batch.
            shuffle: False keeps the order of the data set in every epoch.

        Raises:
            TypeError, ValueError: An argument is none of these.
        """
        for name, value in {"length": length, "batch_size": batch_size, "world": world}.items():
            check_count(name, value)
        for name, value in {"rank": rank, "seed": seed, "start": start}.items():
            check_natural(name, value)
        if rank >= world:
            raise ValueError(f"rank: expected less than world, {world}, got {rank}")
        self._length = length
        self._batch_size = batch_size
        self._rank = rank
        self._world = world
        self._seed = seed
        self._start = start
        self._shuffle = shuffle
        self._epoch: int | None = None
        self._permutation = np.empty(0, np.int64)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the numbers of the samples of batch `start`, `start` + 1, and so on."""
        number = self._start
        while True:
            first = (number * self._world + self._rank) * self._batch_size
            yield [self._at(position) for position in range(first, first + self._batch_size)]
            number += 1

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, self._length)
        if not self._shuffle or self._length >= ENDLESS:
            return place
        if epoch != self._epoch:
            generator = np.random.default_rng((self._seed, epoch))
            self._permutation = generator.permutation(self._length)
            self._epoch = epoch
        return int(self._permutation[place])
