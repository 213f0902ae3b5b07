"""Parts of a source: each becomes a shard, and yields its samples in order."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from setok_kernels.extras import from_extra
from setokim.data import BrokenSampleError, Conversation, Dataset, Sample, split_concepts
from setokim.data.archives import open_seekable, read_entries
from setokim.data.archives.names import local_path
from setokim.data.image_folder import read_captioned
from setokim.data.readers.files import decode_image
from setokim.data.records import DOWNLOADED
from setokim.data.settings import DataSettings
from setokim.utils.file_names import printable_name
from setokim.utils.parsing import import_modules

_ROWS = 64  # of a parquet file in memory


class Entry(Protocol):
    """A sample of a source before it is decoded.

    Attributes:
        key: name of the sample, unique in its part.
        source: file and record, for messages.
    """

    key: str
    source: str

    def load(self) -> Sample | Conversation:
        """Decode the sample; several threads may do so.

        Raises:
            BrokenSampleError: it cannot be read.
        """


@dataclass(frozen=True)
class LazyEntry:
    """An entry that a function loads."""

    key: str
    source: str
    load: Callable[[], Sample | Conversation]


class Part(Protocol):
    """A part of a source; can be pickled."""

    def describe(self) -> str:
        """Return a text that is equal for equal contents, as far as names and numbers tell."""

    def title(self) -> str:
        """Return a short name for messages."""

    def entries(self) -> Iterator[Entry]:
        """Yield the samples in order.

        Raises:
            OSError, ValueError: the source cannot be opened.
        """


@dataclass(frozen=True)
class ArchivePart:
    """A tar archive."""

    name: str

    def describe(self) -> str:
        return f"archive {describe_file(self.name)}"

    def title(self) -> str:
        return self.name

    def entries(self) -> Iterator[Entry]:
        return read_entries(self.name)


@dataclass(frozen=True)
class FilesPart:
    """Image files with their captions beside them."""

    root: str
    files: tuple[str, ...]

    def describe(self) -> str:
        return f"files {json.dumps([self._key(Path(file)) for file in self.files])}"

    def title(self) -> str:
        return f"{self.files[0]} …"

    def entries(self) -> Iterator[Entry]:
        for file in map(Path, self.files):
            yield LazyEntry(self._key(file), str(file), functools.partial(read_captioned, file))

    def _key(self, file: Path) -> str:
        inside = file.is_relative_to(self.root)
        return printable_name(file.relative_to(self.root) if inside else file)


@dataclass(frozen=True)
class ParquetPart:
    """Row groups of a parquet file.

    Attributes:
        name: path or URL of the file.
        groups: first row group and end.
        image: column of the images, bytes or {"bytes", "path"}.
        caption: column of the captions; None without.
        key: column of the keys; None for the number of the row.
        first: number of the first row in the file.
    """

    name: str
    groups: tuple[int, int]
    image: str
    caption: str | None
    key: str | None
    first: int

    def describe(self) -> str:
        start, stop = self.groups
        columns = f"{self.image} {self.caption} {self.key}"
        return f"parquet {describe_file(self.name)} {start}-{stop} {columns}"

    def title(self) -> str:
        return f"{self.name}, row groups {self.groups[0]} to {self.groups[1] - 1}"

    def entries(self) -> Iterator[Entry]:
        with from_extra("tokenize"):
            import pyarrow.parquet
        with open_seekable(self.name) as stream, pyarrow.parquet.ParquetFile(stream) as file:
            known = set(file.schema_arrow.names)
            columns = [self.image, self.caption, self.key, DOWNLOADED[0]]
            number = self.first
            for batch in file.iter_batches(
                _ROWS,
                row_groups=range(*self.groups),
                columns=[name for name in columns if name in known],
            ):
                for record in batch.to_pylist():
                    source, status = f"{self.name}: row {number}", record.get(DOWNLOADED[0])
                    key = f"{number:08d}" if self.key is None else str(record[self.key])
                    number += 1
                    # A failed download is no sample.
                    if status is None or status == DOWNLOADED[1]:
                        load = functools.partial(_sample, record, self.image, self.caption, source)
                        yield LazyEntry(key, source, load)


@dataclass(frozen=True)
class HubPart:
    """Rows of a Hugging Face data set, read by its own library.

    Attributes:
        name: name on the hub, or folder.
        split: name of the split.
        rows: first row and end.
        image: column of the images.
        caption: column of the captions; None without.
    """

    name: str
    split: str
    rows: tuple[int, int]
    image: str
    caption: str | None

    def describe(self) -> str:
        start, stop = self.rows
        return f"hub {self.name} {self.split} {start}-{stop} {self.image} {self.caption}"

    def title(self) -> str:
        return f"{self.name}, {self.split}[{self.rows[0]}:{self.rows[1]}]"

    def entries(self) -> Iterator[Entry]:
        rows = load_hub(self.name, self.split, self.image)
        for number in range(*self.rows):
            source = f"{self.name}: {self.split}[{number}]"
            record = rows[number]
            load = functools.partial(_sample, record, self.image, self.caption, source)
            yield LazyEntry(f"{number:08d}", source, load)


@dataclass(frozen=True)
class DatasetPart:
    """Samples of a data set of `setokim.data`.

    Attributes:
        settings: settings of the data set.
        samples: first sample and end.
        imports: modules that register kinds of data sets, and the folder of relative paths.
    """

    settings: DataSettings
    samples: tuple[int, int]
    imports: tuple[tuple[str, ...], str] = ((), "")

    def describe(self) -> str:
        start, stop = self.samples
        return f"data {_text(self.settings)} {start}-{stop}"

    def title(self) -> str:
        return f"{self.settings.kind}, samples {self.samples[0]} to {self.samples[1] - 1}"

    def entries(self) -> Iterator[Entry]:
        names, folder = self.imports
        import_modules(list(names), Path(folder))
        dataset, lock = _built(_text(self.settings), self.settings.build)

        def load(number: int) -> Sample | Conversation:
            # Data sets keep what they read last, and generated ones their scenes.
            with lock:
                return dataset[number]

        for number in range(*self.samples):
            key = f"{number:08d}"
            yield LazyEntry(key, f"sample {number}", functools.partial(load, number))


def describe_file(name: str) -> str:
    """Return the name and bytes of a local file wherever it lies, or the URL of another one."""
    path = local_path(name)
    return name if path is None else f"{printable_name(path.name)} {path.stat().st_size}"


def _sample(record: dict[str, Any], image: str, caption: str | None, source: str) -> Sample:
    text = "" if caption is None or record[caption] is None else str(record[caption]).strip()
    pixels = decode_image(record.get(image), source, image)
    return Sample(pixels, text, split_concepts(text), None, source)


def _text(settings: DataSettings) -> str:
    return json.dumps(dataclasses.asdict(settings), sort_keys=True)


_BUILT: dict[str, tuple[Dataset, threading.Lock]] = {}


def _built(key: str, build: Callable[[], Dataset]) -> tuple[Dataset, threading.Lock]:
    """Return a data set that this process builds once, since its index may take a minute."""
    if key not in _BUILT:
        _BUILT.clear()
        _BUILT[key] = build(), threading.Lock()
    return _BUILT[key]


@functools.lru_cache(1)
def load_hub(name: str, split: str, image: str | None = None) -> Any:
    """Load a Hugging Face data set, with its images as bytes.

    Args:
        name: name on the hub, or folder of its files or of `save_to_disk`.
        split: name of the split.
        image: column of the images; None to leave all columns as they are.

    Raises:
        ImportError: the package datasets is not installed.
        ValueError: there is no such data set, or it lacks the split.
    """
    with from_extra("datasets"):
        import datasets
    try:
        saved = (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists()
        if saved:
            found = datasets.load_from_disk(name)
            rows = found[split] if isinstance(found, datasets.DatasetDict) else found
        else:
            rows = datasets.load_dataset(name, split=split)
    except Exception as error:
        # The library raises errors of its own, of the hub and of the readers of files.
        reason = " ".join(str(error).split())
        raise ValueError(f"source: expected a data set, got {name} {split}: {reason}") from error
    if image is not None and isinstance(rows.features.get(image), datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    return rows


def first_readable(part: Part) -> Sample | Conversation | None:
    """Return the first sample of a part that can be read, of the first hundred."""
    for entry in itertools.islice(part.entries(), 100):
        with contextlib.suppress(BrokenSampleError):
            return entry.load()
    return None
