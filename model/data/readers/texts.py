"""Text corpora without images: SlimPajama in lines of JSON."""

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
    """Texts in uncompressed files of lines {"text": ..., "meta": ...}.

    A sample is a conversation with an empty question, whose answer is the whole text.

    Args:
        root: folder whose *.jsonl, subfolders included, are read in sorted order.
        longest: max number of characters of a text, which is cut off there; None for no limit.

    Raises:
        TypeError: `longest` is not an integer.
        ValueError: the folder does not exist or has no such file, or `longest` is less than 1.
    """

    # For `contents_of`.
    holds_images = False

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
        file, offset = self._find(index)
        return file.source(offset)

    def _find(self, index: int) -> tuple[JsonLines, int]:
        """Return the file of a text, and its index in that file."""
        number = bisect_right(self._ends, index)
        file = self._files[number]
        return file, index - (self._ends[number] - len(file))

    def _read(self, index: int, source: str) -> Conversation:
        file, offset = self._find(index)
        text = field_of(file[offset], "text", str, source)[: self._longest]
        turns = message("user", ""), message("assistant", text)
        return Conversation("text", turns, (), source)
