"""Samples of a benchmark as far as they can be read: the others are noted, and limited."""

from __future__ import annotations

from typing import Any

from setokim.data import BrokenSampleError, Dataset, Guarded
from setokim.data.samples import Broken, Reading
from setokim.evaluation.answer_log import AnswerLog


class Readable:
    """A data set that notes what cannot be read, and ends a run when that is too much.

    Metrics of the rest look like those of the whole, so that the limit is that of training.

    Args:
        dataset: at least one sample.
        log: where broken samples are noted.
        allow_missing: whether to do without the limit.

    Attributes:
        broken: numbers of the samples that could not be read.
    """

    def __init__(self, dataset: Dataset, log: AnswerLog, allow_missing: bool = False):
        self.broken: set[int] = set()
        self._dataset, self._log = dataset, log
        limits = {"max_share": 1.0} if allow_missing else {}
        self._guard = Guarded(dataset, **limits)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        """Read one sample.

        Raises:
            BrokenSampleError: it cannot be read.
            IndexError: there is none of that number.
            TooManyBrokenError: neither can too many others.
        """
        try:
            sample = self._dataset[index]
        except BrokenSampleError as error:
            self.broken.add(index)
            self._log.add_broken(index, error.source, error.reason)
            broken = Broken(index, error.source, error.reason)
            self._guard.count(Reading((index,), (broken,)))
            raise
        self._guard.count(Reading((index,), ()))
        return sample

    def finish(self) -> str:
        """Judge the whole run; returns what could be read, in words.

        Raises:
            TooManyBrokenError: too many samples could not be read.
        """
        return self._guard.finish()
