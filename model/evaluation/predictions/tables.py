"""Files of rows: JSON, lines of JSON, tab-separated values and Excel's workbooks."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from setok_kernels.extras import from_extra
from setokim.data.records import json_of, parse_json
from setokim.evaluation.predictions.prediction import PredictionError
from setokim.utils.files import replacing, write_file

# Source and fields of each row.
Rows = list[tuple[str, dict[str, Any]]]

_ZIP = b"PK\x03\x04"
# Max length of a cell in a workbook.
_MAX_CELL = 32_767
_FIRST_KEYS = ("id", "question_id", "questionId", "image_id", "index", "number", "doc_id")
# Name of the id in rows of a file that maps ids to answers.
MAPPED_ID = "id"
MAPPED_ANSWER = "answer"
# Workbooks write a control character as _xHHHH_, and escape the underscore of such a text.
_ESCAPE = re.compile(r"_x([0-9A-Fa-f]{4})_")
_UNESCAPED = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)")


def read_rows(path: Path) -> Rows:
    """Read the rows of a file; its content decides how, whatever its name.

    A JSON file may be a list of objects, one object a line, or one object that maps ids to answers
    or to objects.

    Args:
        path: file to read.

    Returns:
        Source and fields of each row, at least one.

    Raises:
        ImportError: the file is a workbook, and openpyxl is not installed.
        OSError: the file cannot be read.
        PredictionError: the file is damaged, empty or of another kind.
    """
    data = path.read_bytes()
    if data.startswith(_ZIP):
        rows = _read_workbook(path, data)
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise PredictionError(f"{path}: expected UTF-8 or a workbook, got {error}") from error
        is_json = text.lstrip()[:1] in ("{", "[")
        rows = _read_json(path, text) if is_json else _read_tabs(path, text)
    if not rows:
        raise PredictionError(f"{path}: expected at least one prediction, got none")
    return rows


def check_encodable(text: str, source: str) -> None:
    """Check that UTF-8 can hold a text, which JSON alone can escape.

    Args:
        text: text of any characters.
        source: sample of the text, for the message.

    Raises:
        PredictionError: the text has a lone surrogate.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PredictionError(f"{source}: expected a text in UTF-8, got {text!r:.80}") from error


def write_tabs(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of the same fields as tab-separated values, every one in quotes.

    Raises:
        OSError: the file cannot be written.
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, "excel-tab", quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    write_file(path, stream.getvalue())


def write_workbook(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of the same fields as a workbook of one sheet.

    Raises:
        ImportError: openpyxl is not installed.
        OSError: the file cannot be written.
        PredictionError: a text is longer than a cell can be.
    """
    with from_extra("score"):
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell

    # Before the sheet begins, which must be written to its end.
    texts = [
        {name: _escaped(path, number, name, value) for name, value in row.items()}
        for number, row in enumerate(rows, 2)
    ]
    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(list(rows[0]))
    for row in texts:
        cells = []
        for value in row.values():
            cell = WriteOnlyCell(sheet, value)
            if isinstance(value, str):
                # A text that begins with "=" is no formula.
                cell.data_type = "s"
            cells.append(cell)
        sheet.append(cells)
    with replacing(path) as beside:
        book.save(beside)


def _escaped(path: Path, number: int, name: str, value: Any) -> Any:
    """Return a value as a cell holds it."""
    if not isinstance(value, str):
        return value
    text = _UNESCAPED.sub(lambda found: f"_x{ord(found[0]):04X}_", value)
    if len(text) > _MAX_CELL:
        expected = f"at most {_MAX_CELL} characters in a cell"
        got = f"{len(text)} in row {number}; write a .tsv file"
        raise PredictionError(f"{path}: {name}: expected {expected}, got {got}")
    return text


def _read_json(path: Path, text: str) -> Rows:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    first = _parsed(lines[0][1])
    if isinstance(first, dict) and (len(lines) > 1 or _is_record(first)):
        return [_line(path, number, line) for number, line in lines]
    try:
        whole = json_of(text.encode("utf-8"), str(path))
    except ValueError as error:
        raise PredictionError(str(error)) from error
    if isinstance(whole, dict):
        _check_keys(path, text)
        return _mapped(path, whole)
    for number, one in enumerate(whole):
        if not isinstance(one, dict):
            raise PredictionError(f"{path}: [{number}]: expected an object, got {one!r:.80}")
    return [(f"{path}: [{number}]", one) for number, one in enumerate(whole)]


def _parsed(line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError:
        return None


def _line(path: Path, number: int, line: str) -> tuple[str, dict[str, Any]]:
    source = f"{path}:{number}"
    try:
        row = parse_json(line)
    except ValueError as error:
        raise PredictionError(f"{source}: expected JSON, got {error}") from error
    if not isinstance(row, dict):
        raise PredictionError(f"{source}: expected an object, got {row!r:.80}")
    return source, row


def _is_record(row: dict[str, Any]) -> bool:
    """Return whether a file of one object is one record, not a mapping from ids."""
    return any(name in row for name in _FIRST_KEYS)


def _check_keys(path: Path, text: str) -> None:
    """Check that no id occurs twice, of which a dict keeps only the last."""

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key in found if sum(one == key for one, _ in pairs) > 1)
            raise PredictionError(f"{path}: expected each id once, got {twice!r:.80} twice")
        return found

    json.loads(text, object_pairs_hook=check)


def _mapped(path: Path, whole: dict[str, Any]) -> Rows:
    if not all(isinstance(value, (str, dict)) for value in whole.values()):
        raise PredictionError(f"{path}: expected answers by id, got other values")
    return [
        (
            f"{path}: {key}",
            {MAPPED_ID: key} | (value if isinstance(value, dict) else {MAPPED_ANSWER: value}),
        )
        for key, value in whole.items()
    ]


def _read_tabs(path: Path, text: str) -> Rows:
    # A damaged file must not lose its lines in a quoted field that never ends.
    reader = csv.reader(io.StringIO(text, newline=""), "excel-tab", strict=True)
    try:
        found = list(reader)
    except csv.Error as error:
        got = f"{error} in line {reader.line_num}"
        raise PredictionError(f"{path}: expected tab-separated values, got {got}") from error
    return _with_head(path, [row for row in found if row])


def _read_workbook(path: Path, data: bytes) -> Rows:
    with from_extra("score"):
        import openpyxl
    try:
        # Not by its path, whose suffix openpyxl would check. Formulas as they are: some programs
        # write every text that begins with "=" as one.
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=False)
        with_values = [list(row) for row in book.worksheets[0].iter_rows(values_only=True)]
        book.close()
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        # Damaged archives and XML raise errors of many kinds.
        reason = f"{type(error).__name__}: {error}"
        raise PredictionError(f"{path}: expected a workbook, got {reason}") from error
    rows = [row for row in with_values if any(value is not None for value in row)]
    return _with_head(path, [[_cell(value) for value in row] for row in rows])


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), value)
    return "" if value is None else value


def _with_head(path: Path, found: list[list[Any]]) -> Rows:
    """Return the rows below the first one, which has the names of the columns."""
    if not found:
        return []
    names = [str(name) for name in found[0]]
    if len(names) < 2 or len(set(names)) < len(names):
        expected = "JSON, or a table whose first row names its columns"
        raise PredictionError(f"{path}: expected {expected}, got {', '.join(names)!r:.80}")
    rows = []
    for number, values in enumerate(found[1:], 2):
        source = f"{path}: row {number}"
        if len(values) != len(names):
            raise PredictionError(f"{source}: expected {len(names)} cells, got {len(values)}")
        rows.append((source, dict(zip(names, values, strict=True))))
    return rows
