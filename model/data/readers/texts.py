"""Texts without pictures: SlimPajama in lines of JSON."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

from setok_kernels.config import check_count
from setokim.data.conversations import Conversation, message
from setokim.data.file_dataset import FileDataset
from setokim.data.readers.files import check_root, field_of
from setokim.data.records import JsonLines


class SlimPajama(FileDataset):
    """Texts in files of lines {"text": ..., "meta": ...}, unpacked from their compression.

    A sample is a conversation in which the assistant says the whole text and nobody asked.

    Args:
        root: folder; all *.jsonl in it and in those inside it are read, in sorted order.
        longest: most characters of a text, beyond which it is cut off; None for no limit.

    Raises:
        TypeError: `longest` is no integer.
        ValueError: there is no such folder, or no such file, or `longest` is less than 1.
    """

    def __init__(self, root: str | Path, longest: int | None = None):
        if longest is not None:
            check_count("longest", longest)
        self._longest = longest
        paths = sorted(check_root(root).rglob("*.jsonl"))
        if not paths:
            raise ValueError(f"root: expected *.jsonl in {root}, got none")
        self._files = [JsonLines(path) for path in paths]
        self._ends = list(accumulate(map(len, self._files)))

    def __len__(self) -> int:
        return self._ends[-1]

    def _source(self, index: int) -> str:
        file, place = self._find(index)
        return file.source(place)

    def _find(self, index: int) -> tuple[JsonLines, int]:
        """The file of a text, and its place in there."""
        number = bisect_right(self._ends, index)
        file = self._files[number]
        return file, index - (self._ends[number] - len(file))

    def _read(self, index: int, source: str) -> Conversation:
        file, place = self._find(index)
        text = field_of(file[place], "text", str, source)[: self._longest]
        turns = message("user", ""), message("assistant", text)
        return Conversation("text", turns, (), source)
