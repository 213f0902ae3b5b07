"""Texts without pictures: SlimPajama in lines of JSON."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

from setokim.data.conversations import Conversation, message
from setokim.data.readers.files import check_root, field_of
from setokim.data.records import JsonLines
from setokim.data.samples import check_index


class SlimPajama:
    """Texts in files of lines {"text": ..., "meta": ...}, unpacked from their compression.

    A sample is a conversation in which the assistant says the whole text and nobody asked.

    Args:
        root: folder; all *.jsonl in it and in those inside it are read, in sorted order.

    Raises:
        ValueError: there is no such folder, or no such file.
    """

    def __init__(self, root: str | Path):
        paths = sorted(check_root(root).rglob("*.jsonl"))
        if not paths:
            raise ValueError(f"root: expected *.jsonl in {root}, got none")
        self._files = [JsonLines(path) for path in paths]
        self._ends = list(accumulate(map(len, self._files)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Conversation:
        """The text of a line.

        Raises:
            BrokenSampleError: it cannot be read.
            IndexError: there is none of that number.
        """
        check_index(index, len(self))
        number = bisect_right(self._ends, index)
        file = self._files[number]
        place = index - (self._ends[number] - len(file))
        source = file.source(place)
        text = field_of(file[place], "text", str, source)
        turns = message("user", ""), message("assistant", text)
        return Conversation("text", turns, (), source)
