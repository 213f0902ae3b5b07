"""Order of the samples in batches: shuffled, split over processes, and resumable."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from setok_kernels.config import check_count
from setokim.data.samples import check_natural

# No run reaches the end of data sets at least this long, whose permutation would not fit in memory.
ENDLESS = 2**31


class Order:
    """A batch sampler for `torch.utils.data.DataLoader` that never ends.

    All processes share one sequence of positions. Batch k covers the batch_size · world positions
    from k · batch_size · world on, and process r takes the r-th batch_size of them. So two
    processes read in each step the samples that one process reads with batches twice as large.

    Each epoch, `length` positions, has every sample once, in an order that depends on the seed and
    the number of the epoch; a batch may span epochs. In endless data sets, of at least `ENDLESS`
    samples, sample p stands at position p, and shuffling has no effect.

    A `DataLoader` prefetches batches, so a run that resumes must count the batches it trained on
    and pass that number as `start`.
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
        """Check and store the settings.

        Args:
            length: number of samples of the data set.
            batch_size: number of samples in a batch of one process.
            rank: rank of this process, from 0.
            world: number of processes.
            seed: random seed of the order.
            start: number of the first batch.
            shuffle: random order; False keeps the order of the data set in every epoch.

        Raises:
            TypeError, ValueError: an argument does not fit its description.
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
        """Yield the indices of the samples of batch `start`, `start` + 1, and so on."""
        number = self._start
        while True:
            first = (number * self._world + self._rank) * self._batch_size
            yield [self._at(position) for position in range(first, first + self._batch_size)]
            number += 1

    def _at(self, position: int) -> int:
        epoch, index = divmod(position, self._length)
        if not self._shuffle or self._length >= ENDLESS:
            return index
        if epoch != self._epoch:
            generator = np.random.default_rng((self._seed, epoch))
            self._permutation = generator.permutation(self._length)
            self._epoch = epoch
        return int(self._permutation[index])
