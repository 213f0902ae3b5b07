"""Text corpora without images: SlimPajama in lines of JSON, compressed or not."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

from setok_kernels.config import check_count
from setokim.data.archives.copies import local_copy
from setokim.data.conversations import Conversation, message
from setokim.data.file_dataset import FileDataset
from setokim.data.readers.files import check_root, field_of
from setokim.data.records import JsonLines

_LINES = ".jsonl"
_PATTERNS = ("*.jsonl", "*.jsonl.zst", "*.jsonl.gz")


class SlimPajama(FileDataset):
    """Texts in files of lines {"text": ..., "meta": ...}.

    A sample is a conversation with an empty question, whose answer is the whole text. Compressed
    files are unpacked into a cache (`local_copy`), since texts are read in any order. A damaged one
    ends with a broken sample, the line at the damage.

    Args:
        root: folder whose *.jsonl, *.jsonl.zst and *.jsonl.gz, subfolders included, are read in
            sorted order. A compressed file beside its unpacked one is left out.
        longest: max number of characters of a text, which is cut off there; None for no limit.
        cache: folder for unpacked copies, as in `archives.local_copy`.

    Raises:
        MissingExtraError: a file is in zstd and the package for it is not installed.
        OSError: the cache cannot be written.
        TypeError: `longest` is not an integer.
        ValueError: the folder does not exist or has no such file, a compressed one is damaged from
            its start, or `longest` is less than 1.
    """

    # For `contents_of`.
    holds_images = False

    def __init__(
        self, root: str | Path, longest: int | None = None, cache: str | Path | None = None
    ):
        if longest is not None:
            check_count("longest", longest)
        self._longest = longest
        paths = sorted(
            path
            for pattern in _PATTERNS
            for path in check_root(root).rglob(pattern)
            if path.suffix == _LINES or not path.with_suffix("").is_file()
        )
        if not paths:
            raise ValueError(f"root: expected {' or '.join(_PATTERNS)} in {root}, got none")
        self._files = [
            JsonLines(local_copy(path, cache, suffix=_LINES), name=path) for path in paths
        ]
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
