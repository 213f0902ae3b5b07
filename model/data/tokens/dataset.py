"""Data set of stored tokens: sample i is sample i of the data that was tokenized."""

from __future__ import annotations

import bisect
import collections
import itertools
import os
from pathlib import Path
from typing import Any

from setokim.data.build import READ
from setokim.data.conversations import Conversation
from setokim.data.file_dataset import FileDataset
from setokim.data.records import JsonLines
from setokim.data.samples import Sample, split_concepts
from setokim.data.tokens import conversations, parquet, tar
from setokim.data.tokens.manifest import (
    Manifest,
    Shard,
    TokenFolderError,
    read_manifest,
    read_shards,
)

READERS = {"parquet": parquet.ParquetTokenReader, "webdataset": tar.TarTokenReader}
# Shards whose files stay open; each has its index and one row group in memory.
_MAX_OPEN = 64


@READ.register("tokens")
class TokenDataset(FileDataset):
    """Captioned images or conversations, each image a `StoredImage` in place of its pixels.

    Attributes:
        model: tokenizer of the images, see `contents.StoredData`.
        what: stored fields of the images.

    Args:
        path: folder that `setok tokenize` wrote.
        unfinished: acceptance of a folder in which shards are missing.

    Raises:
        ImportError: the files are parquet, and pyarrow is not installed.
        TokenFolderError: there is no such folder, it is damaged, or shards are missing.
    """

    def __init__(self, path: str | Path, unfinished: bool = False):
        self._folder = Path(path)
        self.manifest: Manifest = read_manifest(self._folder)
        layout = self.manifest.layout
        self.model = self.manifest.tokenizer | {"dtype": layout.dtype}
        self.what = layout.what
        found = read_shards(self._folder, self.manifest.parts)
        if len(found) < self.manifest.parts and not unfinished:
            expected = f"all {self.manifest.parts} shards"
            got = f"{len(found)} in {self._folder}"
            raise TokenFolderError(
                f"path: expected {expected}, got {got}; run setok tokenize again, or set "
                "unfinished: true"
            )
        self._shards = [found[part] for part in sorted(found) if found[part].samples]
        if not self._shards:
            raise TokenFolderError(f"path: expected at least one sample, got none in {path}")
        for shard in self._shards:
            self._check_files(shard)
        self._ends = list(itertools.accumulate(shard.samples for shard in self._shards))
        self._open: collections.OrderedDict[int, _ShardReader] = collections.OrderedDict()
        self._process = os.getpid()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": collections.OrderedDict()}

    def _source(self, index: int) -> str:
        number, row = self._place(index)
        return f"{self._folder / self._shards[number].files[0][0]}: sample {row}"

    def _read(self, index: int, source: str) -> Sample | Conversation:
        number, row = self._place(index)
        return self._reader(number).read(row, source)

    def _place(self, index: int) -> tuple[int, int]:
        """Return the shard of a sample, and its number there."""
        number = bisect.bisect_right(self._ends, index)
        return number, index - (self._ends[number] - self._shards[number].samples)

    def _reader(self, number: int) -> _ShardReader:
        if self._process != os.getpid():
            # Data loading processes open the files themselves: a fork shares their positions.
            self._process, self._open = os.getpid(), collections.OrderedDict()
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) == _MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        paths = [self._folder / name for name, _, _ in self._shards[number].files]
        reader = _ShardReader(paths, self.manifest)
        self._open[number] = reader
        return reader

    def _check_files(self, shard: Shard) -> None:
        for name, size, _ in shard.files:
            path = self._folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                got = "no file" if found is None else f"{found}"
                raise TokenFolderError(f"{path}: expected {size} bytes, got {got}")


class _ShardReader:
    """Open files of one shard.

    Args:
        paths: the file of the images, then the one of the conversations, if there is one.
        manifest: manifest of the folder.
    """

    def __init__(self, paths: list[Path], manifest: Manifest):
        self._images = READERS[manifest.format](paths[0])
        self._lines = JsonLines(paths[1]) if manifest.conversations else None

    def read(self, index: int, source: str) -> Sample | Conversation:
        """Read a sample of the shard."""
        if self._lines is not None:
            line = self._lines[index]
            return conversations.from_plain(line, lambda number: self._images[number].image)
        row = self._images[index]
        caption = row.caption or ""
        return Sample(row.image, caption, split_concepts(caption), None, source)

    def close(self) -> None:
        """Close the files."""
        self._images.close()
