"""Samples of data sets, and the handling of samples that cannot be read."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from setok_kernels.config import check_count, check_number
from setokim.data.stored_image import StoredImage
from setokim.utils.text_cleaning import replace_surrogates

_NAMED_IN_MESSAGES = 5
# A full stop ends a phrase only before a space or at the end, so that "2.5 metres" stays whole.
_BETWEEN_PHRASES = re.compile(r"[,;\n]|\.(?=\s|$)|\band\b", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:an?|the)\s+", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Sample:
    """An image with its caption, concepts and masks.

    Attributes:
        image: H × W pixels, mode RGB; or the stored tokens of such an image.
        caption: text of the caption, "" without one.
        concepts: noun phrases of the caption, one per object shown; may be empty.
        masks: (H, W), int64: 0 for the background, i for the object of `concepts[i - 1]`; None
            without annotation.
        source: file, file and its member, or name and number of a generated sample.

    Raises:
        ValueError: the image is not RGB, or the masks have another size.
    """

    image: Image.Image | StoredImage
    caption: str
    concepts: tuple[str, ...]
    masks: np.ndarray | None
    source: str

    def __post_init__(self):
        if isinstance(self.image, Image.Image) and self.image.mode != "RGB":
            raise ValueError(f"image: expected mode RGB, got {self.image.mode}")
        expected = (self.image.height, self.image.width)
        if self.masks is not None and self.masks.shape != expected:
            raise ValueError(f"masks: expected shape {expected}, got {self.masks.shape}")


class BrokenSampleError(ValueError):
    """Error for a sample that cannot be read.

    Undecodable bytes of file names become U+FFFD, so that a log can be written.

    Attributes:
        source: name of the sample, in the form of `Sample.source`.
        reason: description of the failure.
    """

    def __init__(self, source: str, reason: str):
        source, reason = replace_surrogates(source), replace_surrogates(reason)
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class TooManyBrokenError(RuntimeError):
    """Error for more broken samples than allowed; the message names the first of them."""


class Dataset(Protocol):
    """Samples by index; reading one has no effect on any other."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            BrokenSampleError: the sample cannot be read.
            IndexError: `index` is out of range.
        """
        ...


@dataclass(frozen=True)
class Broken:
    """A sample that could not be read: its index, its name and the reason."""

    index: int
    source: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """Report on the reading of samples, sent with them from a worker to the counting process.

    Attributes:
        tried: indices of all samples that were tried, readable or not.
        broken: samples that could not be read.
    """

    tried: tuple[int, ...]
    broken: tuple[Broken, ...]

    @staticmethod
    def merge(readings: Iterable[Reading]) -> Reading:
        """Merge the reports of a batch into one; the collate function calls this."""
        readings = list(readings)
        return Reading(
            tuple(index for reading in readings for index in reading.tried),
            tuple(broken for reading in readings for broken in reading.broken),
        )


class Guarded:
    """A data set that replaces broken samples by the next readable ones, up to a limit.

    Reading and counting are two steps, because a `DataLoader` reads in worker processes that share
    no memory with the training process. An item is a sample with a report on its reading. The
    collate function merges the reports of a batch with `Reading.merge`, and the training process
    passes each merged report to `count`.
    """

    def __init__(self, dataset: Dataset, max_share: float = 0.01, min_tried: int = 100):
        """Check and store the limits.

        Args:
            dataset: data set to read.
            max_share: max fraction of broken samples among those tried.
            min_tried: min number of samples tried before `count` applies the limit.

        Raises:
            TypeError: a limit is no number.
            ValueError: the data set is empty, or a limit is out of range.
        """
        if len(dataset) == 0:
            raise ValueError("dataset: expected at least one sample, got none")
        check_number("max_share", max_share, least=0, most=1)
        check_count("min_tried", min_tried)
        self._dataset = dataset
        self._max_share = max_share
        self._min_tried = min_tried
        self._tried = _IndexSet()
        self._broken: dict[int, Broken] = {}

    @property
    def datasets(self) -> tuple[Dataset]:
        """Data set inside, for `contents_of`."""
        return (self._dataset,)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Sample, Reading]:
        """Read sample `index`, or the next readable one after it; 0 follows the last.

        Raises:
            IndexError: `index` is out of range.
            TooManyBrokenError: the broken samples in a row alone exceed the limit of the whole
                data set.
        """
        check_index(index, len(self))
        max_tried = max(self._min_tried, math.floor(self._max_share * len(self)) + 1)
        tried: list[int] = []
        broken: list[Broken] = []
        for step in range(min(max_tried, len(self))):
            tried.append((index + step) % len(self))
            try:
                return self._dataset[tried[-1]], Reading(tuple(tried), tuple(broken))
            except BrokenSampleError as error:
                broken.append(Broken(tried[-1], error.source, error.reason))
        raise TooManyBrokenError(f"no sample was readable: {_describe(broken, len(tried))}")

    def count(self, reading: Reading) -> None:
        """Add a report to the counts; each sample counts once, however often it was tried.

        Raises:
            TooManyBrokenError: at least `min_tried` samples were tried, and the fraction of broken
                ones exceeds `max_share`.
        """
        for index in reading.tried:
            self._tried.add(index)
        for broken in reading.broken:
            self._broken.setdefault(broken.index, broken)
        if len(self._tried) >= self._min_tried:
            self._check_limit()

    @property
    def broken(self) -> list[tuple[str, str]]:
        """Source and reason of each broken sample counted, in the order of their discovery."""
        return [(broken.source, broken.reason) for broken in self._broken.values()]

    def summary(self) -> str:
        """Return a line for the end of a run: the number of broken samples and the first few."""
        return _describe(list(self._broken.values()), len(self._tried))

    def finish(self) -> str:
        """Apply the limit to the whole run, however few samples were tried.

        Returns:
            The summary.

        Raises:
            TooManyBrokenError: the fraction of broken samples exceeds `max_share`.
        """
        self._check_limit()
        return self.summary()

    def state_dict(self) -> dict[str, Any]:
        """Return the counts as a tensor of bits and plain values, for a run that resumes."""
        broken = [[one.index, one.source, one.reason] for one in self._broken.values()]
        return {"tried": self._tried.state(), "broken": broken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counts that `state_dict` returned."""
        self._tried = _IndexSet(state["tried"])
        self._broken = {index: Broken(index, *rest) for index, *rest in state["broken"]}

    def _check_limit(self) -> None:
        if len(self._broken) > self._max_share * len(self._tried):
            raise TooManyBrokenError(
                f"more than {self._max_share:.3g} of the samples are broken: {self.summary()}"
            )


class _IndexSet:
    """Set of indices, one bit each, since a run tries millions of samples."""

    def __init__(self, bits: Tensor | None = None):
        self._bits = bytearray() if bits is None else bytearray(bits.numpy().tobytes())
        self._size = sum(byte.bit_count() for byte in self._bits)

    def state(self) -> Tensor:
        """Return the bits as uint8."""
        return torch.from_numpy(np.frombuffer(bytes(self._bits), np.uint8).copy())

    def __len__(self) -> int:
        return self._size

    def add(self, index: int) -> None:
        byte, bit = index // 8, 1 << index % 8
        if byte >= len(self._bits):
            self._bits.extend(bytes(byte + 1 - len(self._bits)))
        self._size += not self._bits[byte] & bit
        self._bits[byte] |= bit


def _describe(broken: list[Broken], tried: int) -> str:
    if not broken:
        return f"all {tried} samples tried could be read"
    names = "; ".join(f"{one.source}: {one.reason}" for one in broken[:_NAMED_IN_MESSAGES])
    more = len(broken) - _NAMED_IN_MESSAGES
    rest = f"; and {more} more" if more > 0 else ""
    return f"{len(broken)} of {tried} samples could not be read: {names}{rest}"


def check_index(index: int, length: int) -> None:
    """Check that `index` is one of 0, ..., `length` - 1; its `IndexError` also ends iterations."""
    check_natural("index", index, IndexError)
    if index >= length:
        raise IndexError(f"index: expected less than {length}, got {index}")


def check_natural(name: str, value: int, error: type[Exception] = ValueError) -> None:
    """Check that `value` is an integer of at least 0; raise `error`, or `TypeError` by its type."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value < 0:
        raise error(f"{name}: expected at least 0, got {value!r}")


def split_concepts(caption: str) -> tuple[str, ...]:
    """Split a caption into phrases at commas, semicolons, full stops, line ends and "and".

    A leading article is dropped. No grammar is involved: a caption without any of these is one
    phrase, and "black and white cat" gives two.

    Returns:
        The phrases in their order, each once, spelled as in the caption.
    """
    phrases = (" ".join(part.split()) for part in _BETWEEN_PHRASES.split(caption))
    stripped = (_ARTICLE.sub("", phrase) for phrase in phrases)
    return tuple(dict.fromkeys(phrase for phrase in stripped if phrase))
