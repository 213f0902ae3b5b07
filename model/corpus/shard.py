"""Writing of one shard: its files appear whole, and their checksums go into the report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from setokim.corpus.settings import CorpusSettings
from setokim.data.tokens import conversations, parquet, tar
from setokim.data.tokens.layout import TokenRow
from setokim.data.tokens.manifest import Shard
from setokim.utils.checksums import checksum
from setokim.utils.files import replacing
from setokim.utils.json_text import to_json

_WRITERS = {
    "parquet": (parquet.SUFFIX, parquet.ParquetTokenWriter),
    "webdataset": (tar.SUFFIX, tar.TarTokenWriter),
}


class ShardSink:
    """Receiver of the rows of one part, which writes them at once.

    Args:
        rows: open writer of the images.
        lines: open file of the conversations; None for a corpus of images.
    """

    def __init__(self, rows: Any, lines: IO[bytes] | None):
        self._rows, self._lines = rows, lines
        self.images = self.tokens = self.conversations = 0
        self.broken: list[tuple[str, str]] = []

    def add_row(self, row: TokenRow) -> None:
        """Write an image."""
        self._rows.add(row)
        self.images += 1
        self.tokens += len(row.image.sizes)

    def add_conversation(self, line: dict[str, Any]) -> None:
        """Write a conversation."""
        assert self._lines is not None
        self._lines.write((to_json(line) + "\n").encode("utf-8"))
        self.conversations += 1

    def add_broken(self, key: str, reason: str) -> None:
        """Keep the key of a sample that could not be read, and the reason."""
        self.broken.append((key, reason))

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.images if self._lines is None else self.conversations


class ShardFiles:
    """Files of a shard while they are written, and its record once they are whole.

    Args:
        folder: folder of the shards.
        part: number of the part.
        settings: settings of the corpus.
        has_conversations: flag of samples that are conversations.
    """

    def __init__(self, folder: Path, part: int, settings: CorpusSettings, has_conversations: bool):
        suffix, self._writer = _WRITERS[settings.format]
        self._layout, self._part = settings.layout, part
        self._paths = [folder / f"{part:06d}{suffix}"]
        if has_conversations:
            self._paths.append(folder / f"{part:06d}{conversations.SUFFIX}")
        self._sink: ShardSink | None = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[ShardSink]:
        """Yield the receiver of the rows; the files take their names when the block ends.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        with contextlib.ExitStack() as stack:
            beside = [stack.enter_context(replacing(path)) for path in self._paths]
            lines = stack.enter_context(beside[1].open("wb")) if len(beside) == 2 else None
            rows = stack.enter_context(self._writer(beside[0], self._layout))
            self._sink = ShardSink(rows, lines)
            yield self._sink

    def record(self) -> Shard:
        """Return the record of the written shard."""
        sink = self._sink
        assert sink is not None
        files = tuple((path.name, path.stat().st_size, checksum(path)) for path in self._paths)
        return Shard(self._part, files, sink.samples, sink.images, sink.tokens, tuple(sink.broken))
