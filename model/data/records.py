"""Records of data sets in their published files: JSON, lines of JSON, CSV, parquet.

A record that cannot be read raises a `BrokenSampleError` that names file and line; the others are
not affected. Only the offsets of the records stay in memory, except in `JsonList`.
"""

from __future__ import annotations

import codecs
import csv
import json
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from setok_kernels.extras import from_extra
from setokim.data.samples import BrokenSampleError, check_index

# The field of img2dataset for the result of a download, and its value for a successful one.
DOWNLOADED = ("status", "success")
# csv has one limit for the whole process, and a field of a data set may be longer.
_CSV_LIMIT = threading.Lock()


class Records(Protocol):
    """Records by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """Read a record.

        Raises:
            BrokenSampleError: the record cannot be read.
            IndexError: `index` is out of range.
        """
        ...

    def source(self, index: int) -> str:
        """Return the file and line of a record, or another description of its position."""
        ...


class Lines:
    r"""Lines of a text file in UTF-8, empty ones left out.

    "\n" alone ends a line: U+2028 and the like are text. A byte order mark is skipped.

    Args:
        path: path of the file.
        skip: number of lines at the beginning that are no records.
        name: name of the file in messages, if `path` is a copy of it; None for the path.

    Raises:
        OSError: the file does not exist.
    """

    def __init__(self, path: str | Path, skip: int = 0, name: str | Path | None = None):
        self.path = Path(path)
        self._shown = self.path if name is None else name
        self._starts, self._numbers = array("q"), array("q")
        start = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                mark = len(codecs.BOM_UTF8) if _has_mark(line, start) else 0
                if number > skip and line[mark:].strip():
                    self._starts.append(start + mark)
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
        return f"{self._shown}:{self._numbers[index]}"


class JsonLines(Lines):
    """JSON values, one on each line of a text file."""

    def __getitem__(self, index: int) -> Any:
        line = super().__getitem__(index)
        try:
            return parse_json(line)
        except ValueError as error:
            raise BrokenSampleError(self.source(index), f"no JSON: {error}") from error


class CsvRows(Lines):
    """Rows of a CSV file as dicts by the names of its columns; no field spans lines.

    Args:
        path: path of the file.
        columns: names of the required columns.
        names: names of all columns, for a file without a header; None to read them from the first
            line.

    Raises:
        OSError: the file does not exist.
        ValueError: the first line is no UTF-8, or a required column is missing.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Sequence[str] = (),
        names: Sequence[str] | None = None,
    ):
        super().__init__(path, skip=1 if names is None else 0)
        self._names = self._head() if names is None else list(names)
        missing = [name for name in columns if name not in self._names]
        if missing:
            raise ValueError(f"{self.path}:1: expected a column {missing[0]}, got {self._names}")

    def _head(self) -> list[str]:
        with self.path.open("rb") as file:
            try:
                return _fields(file.readline().decode("utf-8-sig"))
            except (UnicodeDecodeError, csv.Error) as error:
                raise ValueError(f"{self.path}:1: expected UTF-8, got {error}") from error

    def __getitem__(self, index: int) -> dict[str, str]:
        line = super().__getitem__(index)
        try:
            fields = _fields(line)
        except csv.Error as error:
            raise BrokenSampleError(self.source(index), f"no CSV: {error}") from error
        if len(fields) != len(self._names):
            reason = f"expected {len(self._names)} fields, got {len(fields)}"
            raise BrokenSampleError(self.source(index), reason)
        return dict(zip(self._names, fields, strict=True))


def _fields(line: str) -> list[str]:
    with _CSV_LIMIT:
        limit = csv.field_size_limit(max(len(line), 1))
        try:
            return next(csv.reader([line]), [])
        finally:
            csv.field_size_limit(limit)


def _has_mark(line: bytes, start: int) -> bool:
    return start == 0 and line.startswith(codecs.BOM_UTF8)


class JsonList:
    """Items of a list in a JSON file, which is read completely.

    Args:
        path: path of the file.
        key: key of the list in the file's object; None if the file is the list itself.

    Raises:
        OSError: the file does not exist.
        ValueError: the file holds something else.
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


@dataclass(frozen=True)
class _Group:
    """Row group of a parquet file: its selected rows, and the number of records up to its end."""

    path: Path
    number: int
    rows: Sequence[int]
    end: int


class ParquetRows:
    """Rows of parquet files, one file after the other; one row group is read at a time.

    Args:
        paths: paths of the files, at least one.
        where: column and value of the rows to keep; files without the column keep all rows.

    Raises:
        ImportError: pyarrow is not installed.
        OSError, ValueError: a file is missing, or no parquet file.
    """

    def __init__(self, paths: Sequence[str | Path], where: tuple[str, str] | None = None):
        with from_extra("eval"):
            import pyarrow.parquet

        self._where = where
        self._groups: list[_Group] = []
        for path in map(Path, paths):
            try:
                with pyarrow.parquet.ParquetFile(path) as file:
                    self._add(path, file)
            except FileNotFoundError:
                raise
            except (OSError, ValueError, pyarrow.ArrowException) as error:
                # Column names that are no UTF-8 raise a ValueError.
                raise ValueError(f"{path}: expected a parquet file, got {error}") from error
        self._kept: tuple[_Group | None, Any] = (None, None)

    def __len__(self) -> int:
        return self._groups[-1].end if self._groups else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        group, row = self._find(index)
        if self._kept[0] is not group:
            self._kept = (group, self._read(group, index))
        table = self._kept[1]
        if row >= table.num_rows:
            reason = f"expected {len(group.rows)} rows, got {table.num_rows}"
            raise BrokenSampleError(self.source(index), reason)
        return table.slice(row, 1).to_pylist()[0]

    def column(self, name: str) -> list[Any]:
        """Read one column of all rows that count.

        Raises:
            ValueError: a file has no such column, or is damaged.
        """
        import pyarrow.parquet

        found = []
        for group in self._groups:
            try:
                with pyarrow.parquet.ParquetFile(group.path) as file:
                    values = file.read_row_group(group.number, columns=[name])[name].to_pylist()
                    found += [values[row] for row in group.rows]
            except (OSError, KeyError, IndexError, pyarrow.ArrowException) as error:
                raise ValueError(f"{group.path}: expected a column {name}, got {error}") from error
        return found

    def source(self, index: int) -> str:
        group, row = self._find(index)
        return f"{group.path}: row {row} of group {group.number}"

    def _add(self, path: Path, file: Any) -> None:
        for number in range(file.num_row_groups):
            length = file.metadata.row_group(number).num_rows
            if length < 0:
                raise ValueError(f"a group of {length} rows")
            rows = self._selected_rows(file, number, range(length))
            self._groups.append(_Group(path, number, rows, len(self) + len(rows)))

    def _selected_rows(self, file: Any, number: int, rows: range) -> Sequence[int]:
        import pyarrow

        if self._where is None or self._where[0] not in file.schema_arrow.names:
            return rows
        name, value = self._where
        try:
            column = file.read_row_group(number, columns=[name]).column(name).to_pylist()
        except (OSError, pyarrow.ArrowException):
            # The column is damaged: reading the rows will raise an error that names them.
            return rows
        return array("q", [row for row, one in enumerate(column) if one == value])

    def _find(self, index: int) -> tuple[_Group, int]:
        """Return the group of a record, and its row in that group."""
        check_index(index, len(self))
        group = next(one for one in self._groups if index < one.end)
        return group, group.rows[index - (group.end - len(group.rows))]

    def _read(self, group: _Group, index: int) -> Any:
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(group.path) as file:
                _check_chunks(file.metadata.row_group(group.number), group.path.stat().st_size)
                return file.read_row_group(group.number)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise BrokenSampleError(self.source(index), str(error)) from error


def _check_chunks(group: Any, size: int) -> None:
    """Check that all columns lie within the file of `size` bytes, before they are allocated."""
    for number in range(group.num_columns):
        column = group.column(number)
        starts = (column.dictionary_page_offset, column.data_page_offset)
        start, length = min(one for one in starts if one is not None), column.total_compressed_size
        if start < 0 or length < 0 or start + length > size:
            name = column.path_in_schema
            raise ValueError(f"{name}: expected data within {size} bytes, got {start} + {length}")


def parse_json(text: str) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: the text is no JSON, or nested too deep.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("expected JSON, got one nested too deep") from error


def read_json(path: str | Path, fallback: str | None = None) -> Any:
    """Read a JSON file in UTF-8, with or without a byte order mark.

    Args:
        path: path of the file.
        fallback: encoding of a file that is no UTF-8; None to accept UTF-8 only.

    Raises:
        OSError: the file does not exist.
        ValueError: the file is no UTF-8 or no JSON; the message names file, line and column.
    """
    path = Path(path)
    return json_of(path.read_bytes(), str(path), fallback)


def json_of(data: bytes, name: str, fallback: str | None = None) -> Any:
    """Parse the bytes of a JSON file as `read_json` does; messages begin with `name`.

    Raises:
        ValueError: the bytes are no UTF-8 or no JSON; the message names line and column.
    """
    try:
        return parse_json(_decoded(data, fallback))
    except json.JSONDecodeError as error:
        where = f"{name}:{error.lineno}:{error.colno}"
        raise ValueError(f"{where}: expected JSON, got {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: expected UTF-8, got {error}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _decoded(data: bytes, fallback: str | None) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        if fallback is None:
            raise
        return data.decode(fallback)
