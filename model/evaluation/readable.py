"""Reading of the samples of a benchmark, some of which may be broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from setokim.data import BrokenSampleError, Dataset, Guarded
from setokim.data.samples import Broken, Reading


def read_samples(
    dataset: Dataset, number: int, show: Callable[[int], None] = lambda number: None
) -> Iterator[Any]:
    """Yield the first samples, and None for each that cannot be read.

    Args:
        dataset: data set of at least `number` samples.
        number: number of samples, from the beginning.
        show: callback with the number of samples read so far.
    """
    for index in range(number):
        try:
            sample = dataset[index]
        except BrokenSampleError:
            sample = None
        yield sample
        show(index + 1)


class Readable:
    """A data set that logs broken samples and ends a run with too many of them.

    Metrics of the remaining samples look like those of all samples, so the limit is that of
    training.

    Args:
        dataset: data set of at least one sample.
        note: function that logs index, source and reason of a broken sample.
        allow_missing: permission to exceed the limit.

    Attributes:
        broken: indices of the samples that could not be read.
    """

    def __init__(
        self,
        dataset: Dataset,
        note: Callable[[int, str, str], None],
        allow_missing: bool = False,
    ):
        self.broken: set[int] = set()
        self._dataset, self._note = dataset, note
        limits = {"max_share": 1.0} if allow_missing else {}
        self._guard = Guarded(dataset, **limits)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        """Read one sample.

        Raises:
            BrokenSampleError: the sample cannot be read.
            IndexError: `index` is out of range.
            TooManyBrokenError: too many samples could not be read.
        """
        try:
            sample = self._dataset[index]
        except BrokenSampleError as error:
            self.broken.add(index)
            self._note(index, error.source, error.reason)
            broken = Broken(index, error.source, error.reason)
            self._guard.count(Reading((index,), (broken,)))
            raise
        self._guard.count(Reading((index,), ()))
        return sample

    def finish(self) -> str:
        """Apply the limit to the whole run; return a summary of the broken samples.

        Raises:
            TooManyBrokenError: too many samples could not be read.
        """
        return self._guard.finish()
