"""Base class of data sets in files, which turns any failure of a record into a broken record."""

from __future__ import annotations

import dataclasses
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setokim.data.conversations import Conversation
from setokim.data.samples import BrokenSampleError, Sample, check_index
from setokim.utils.text_cleaning import replace_surrogates


class FileDataset(ABC):
    """Base of data sets that read samples from published files.

    Subclasses find their records in the constructor and read one in `_read`, which may raise
    anything: a single record never ends a run. Lone surrogates in text become U+FFFD here, for all
    readers, since neither tokenizers nor UTF-8 files accept them.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _source(self, index: int) -> str:
        """Return the file and record of a sample."""

    @abstractmethod
    def _read(self, index: int, source: str) -> Sample | Conversation:
        """Read a sample.

        Args:
            index: number of the sample, within range.
            source: file and record, for messages.
        """

    def __getitem__(self, index: int) -> Any:
        """Read a sample.

        Raises:
            BrokenSampleError: the sample cannot be read, for whatever reason. For an unexpected
                error, the reason gives its type, text, and innermost file and line.
            ImportError: an optional package is not installed, which is no fault of the record.
            IndexError: `index` is out of range.
        """
        check_index(index, len(self))
        source = self.source(index)
        return read_guarded(lambda: self._read(index, source), source)

    def source(self, index: int) -> str:
        """Return the file and record of a sample, for messages; no index raises an error."""
        try:
            return self._source(index)
        except Exception:
            return f"{type(self).__name__}: sample {index}"


def read_guarded(read: Callable[[], Sample | Conversation], source: str) -> Any:
    """Read a sample and clean its texts; whatever fails makes the sample a broken one.

    Args:
        read: function that reads the sample, and may raise anything.
        source: file and record, for messages.

    Raises:
        BrokenSampleError: the sample cannot be read.
        ImportError: an optional package is not installed, which is no fault of the record.
    """
    try:
        return _with_clean_text(read())
    except (BrokenSampleError, ImportError):
        raise
    except Exception as error:
        raise BrokenSampleError(source, _describe(error)) from error


def _describe(error: Exception) -> str:
    # A RecursionError has a thousand frames, so only the line of the last one is looked up.
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    where = f"{Path(frame.f_code.co_filename).name}:{line}"
    return f"{type(error).__name__}: {error!s:.200} ({where})"


def _with_clean_text(sample: Sample | Conversation) -> Sample | Conversation:
    values = {one.name: getattr(sample, one.name) for one in dataclasses.fields(sample)}
    cleaned = {name: _clean(value) for name, value in values.items()}
    changed = {name: value for name, value in cleaned.items() if value is not values[name]}
    return dataclasses.replace(sample, **changed) if changed else sample


def _clean(value: Any) -> Any:
    """Return `value` itself if none of its texts has a surrogate, else a clean copy."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return replace_surrogates(value)
        return value
    if isinstance(value, dict):
        items = [(_clean(key), _clean(one)) for key, one in value.items()]
        same = all(k is key and v is value[key] for (k, v), key in zip(items, value, strict=True))
        return value if same else dict(items)
    if isinstance(value, (list, tuple)):
        parts = [_clean(one) for one in value]
        same = all(new is old for new, old in zip(parts, value, strict=True))
        return value if same else type(value)(parts)
    return value
