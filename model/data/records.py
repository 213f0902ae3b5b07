"""Records of data sets in their published files: JSON, lines of JSON, CSV, parquet, plain pickles.

A record that cannot be read is a `BrokenSampleError` that names file and line; the others are not
affected. Nothing is held in memory but where records begin, apart from `JsonList`.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from setokim.data.samples import BrokenSampleError, check_index


class Records(Protocol):
    """Records by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """Reads one.

        Raises:
            BrokenSampleError: it cannot be read.
            IndexError: there is none of that number.
        """
        ...

    def source(self, index: int) -> str:
        """File and line, or whatever else tells where it is."""
        ...


class Lines:
    """Lines of a text file in UTF-8, empty ones left out.

    Args:
        path: of the file.
        skip: lines at the beginning that are no records.

    Raises:
        OSError: there is no such file.
    """

    def __init__(self, path: str | Path, skip: int = 0):
        self.path = Path(path)
        self._starts, self._numbers = array("q"), array("q")
        start = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number > skip and line.strip():
                    self._starts.append(start)
                    self._numbers.append(number)
                start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> str:
        check_index(index, len(self))
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            line = file.readline()
        try:
            return line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise BrokenSampleError(self.source(index), f"no UTF-8: {error}") from error

    def source(self, index: int) -> str:
        return f"{self.path}:{self._numbers[index]}"


class JsonLines(Lines):
    """A JSON value on each line."""

    def __getitem__(self, index: int) -> Any:
        line = super().__getitem__(index)
        try:
            return json.loads(line)
        except ValueError as error:
            raise BrokenSampleError(self.source(index), f"no JSON: {error}") from error


class CsvRows(Lines):
    """Rows of a CSV file as dicts by the names in its first line; no field spans lines.

    Raises:
        OSError: there is no such file.
        ValueError: the first line is no UTF-8.
    """

    def __init__(self, path: str | Path):
        super().__init__(path, skip=1)
        with self.path.open("rb") as file:
            try:
                head = file.readline().decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.path}:1: expected UTF-8, got {error}") from error
        self._names = next(csv.reader([head]), [])

    def __getitem__(self, index: int) -> dict[str, str]:
        fields = next(csv.reader([super().__getitem__(index)]))
        if len(fields) != len(self._names):
            reason = f"expected {len(self._names)} fields, got {len(fields)}"
            raise BrokenSampleError(self.source(index), reason)
        return dict(zip(self._names, fields, strict=True))


class JsonList:
    """The items of a list in a JSON file, which is read as a whole.

    Args:
        path: of the file.
        key: where in the object of the file the list is; None where the file is the list.

    Raises:
        OSError: there is no such file.
        ValueError: it holds something else.
    """

    def __init__(self, path: str | Path, key: str | None = None):
        self.path, self._key = Path(path), key
        whole = read_json(self.path)
        items = whole.get(key) if key is not None and isinstance(whole, dict) else whole
        if not isinstance(items, list):
            where = "a list" if key is None else f"a list under {key!r}"
            raise ValueError(f"{self.path}: expected {where}, got {type(items).__name__}")
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        check_index(index, len(self))
        return self._items[index]

    def source(self, index: int) -> str:
        where = "" if self._key is None else f"{self._key}"
        return f"{self.path}: {where}[{index}]"


class ParquetRows:
    """Rows of parquet files, one file after the other; a group of rows is read at a time.

    Args:
        paths: of the files, at least one.

    Raises:
        ImportError: pyarrow is not installed.
        OSError, ValueError: a file is not there, or no parquet.
    """

    def __init__(self, paths: Sequence[str | Path]):
        import pyarrow.parquet

        self._paths = [Path(path) for path in paths]
        # For each group of rows: file, group, and the number of rows up to its end.
        self._groups: list[tuple[int, int, int]] = []
        rows = 0
        for number, path in enumerate(self._paths):
            try:
                metadata = pyarrow.parquet.read_metadata(path)
            except pyarrow.ArrowInvalid as error:
                raise ValueError(f"{path}: expected a parquet file, got {error}") from error
            for group in range(metadata.num_row_groups):
                rows += metadata.row_group(group).num_rows
                self._groups.append((number, group, rows))
        self._length = rows
        self._kept: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        place, row = self._find(index)
        if self._kept[0] != place:
            self._kept = (place, self._read(place, index))
        return self._kept[1].slice(row, 1).to_pylist()[0]

    def source(self, index: int) -> str:
        place, row = self._find(index)
        number, group, _ = self._groups[place]
        return f"{self._paths[number]}: row {row} of group {group}"

    def _find(self, index: int) -> tuple[int, int]:
        check_index(index, len(self))
        place = next(i for i, (_, _, end) in enumerate(self._groups) if index < end)
        start = self._groups[place - 1][2] if place else 0
        return place, index - start

    def _read(self, place: int, index: int) -> Any:
        import pyarrow.parquet

        number, group, _ = self._groups[place]
        try:
            with pyarrow.parquet.ParquetFile(self._paths[number]) as file:
                return file.read_row_group(group)
        except (OSError, pyarrow.ArrowException) as error:
            raise BrokenSampleError(self.source(index), str(error)) from error


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: there is no such file.
        ValueError: it is no UTF-8 or no JSON; the message names file, line and column.
    """
    path = Path(path)
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        raise ValueError(f"{where}: expected JSON, got {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, got {error}") from error


def read_plain_pickle(path: str | Path) -> Any:
    """Lists, dicts, texts and numbers from a pickle; nothing else is built, nothing is called.

    Args:
        path: of the file; Python 2 may have written it.

    Raises:
        OSError: there is no such file.
        ValueError: it asks for anything else, or is no pickle.
    """
    path = Path(path)
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="utf-8").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{path}: expected a pickle of plain values, got {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any):
        raise pickle.UnpicklingError(f"the persistent id {pid!r}")
