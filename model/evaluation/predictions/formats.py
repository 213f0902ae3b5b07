"""Registry of the formats of predictions: which one a file has, reading and writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setokim.evaluation.predictions import llava, lmms_eval, own, plain, vlmevalkit
from setokim.evaluation.predictions.prediction import Prediction, PredictionError, id_of
from setokim.evaluation.predictions.tables import (
    check_encodable,
    read_rows,
    write_tabs,
    write_workbook,
)
from setokim.evaluation.prompting import Response
from setokim.utils.files import write_file
from setokim.utils.json_text import to_json


@dataclass(frozen=True)
class _Format:
    """Format of files.

    Attributes:
        matches: function from a row to whether it is one of the format.
        write: function from responses to rows; None for a format that is only read.
    """

    matches: Callable[[Mapping[str, Any]], bool]
    write: Callable[[Sequence[Response]], list[dict[str, Any]]] | None


_PLAIN = "plain"
_VLMEVALKIT = "vlmevalkit"
_TABLES = {".tsv": write_tabs, ".xlsx": write_workbook}
FORMATS: dict[str, _Format] = {
    "setok": _Format(own.matches, own.write),
    "llava": _Format(llava.matches, llava.write),
    "lmms-eval": _Format(lmms_eval.matches, lmms_eval.write),
    _VLMEVALKIT: _Format(vlmevalkit.matches, vlmevalkit.write),
    _PLAIN: _Format(plain.matches, None),
}
# Formats that can be written.
EXPORTS = tuple(name for name, one in FORMATS.items() if one.write is not None)


def read_predictions(
    path: str | Path,
    format: str | None = None,
    field: str | None = None,
    questions: str | Path | None = None,
) -> tuple[str, list[Prediction]]:
    """Read the predictions of a file.

    Args:
        path: file to read.
        format: name of its format, one of `FORMATS`; None to find it by the fields of its rows.
        field: field with the answers of a plain file; None for the only one.
        questions: LLaVA's question file of a LLaVA answers file; None for none.

    Returns:
        Name of the format, and the predictions in order, at least one.

    Raises:
        ImportError: the file is a workbook, and openpyxl is not installed.
        OSError: a file cannot be read.
        PredictionError: the format is unknown or ambiguous, or a row does not fit it.
    """
    path = Path(path)
    rows = read_rows(path)
    if format is None:
        format = _format_of(rows)
    if format not in FORMATS:
        raise PredictionError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    for name, value, only in (("field", field, _PLAIN), ("questions", questions, "llava")):
        if value is not None and format != only:
            raise PredictionError(f"{name}: expected a file of format {only}, got {format}")
    for source, row in rows:
        fits = FORMATS[format].matches(row) or (format == _PLAIN and field in row)
        if not fits:
            got = f"the fields {', '.join(map(str, row))!r:.120}"
            raise PredictionError(f"{source}: expected a row of format {format}, got {got}")
    asked = None if questions is None else _questions(Path(questions))
    found = []
    for number, (source, row) in enumerate(rows):
        if format == "setok":
            one = own.read(row, source, path.parent)
        elif format == "llava":
            one = llava.read(row, source, asked)
        elif format == "lmms-eval":
            one = lmms_eval.read(row, source)
        elif format == _VLMEVALKIT:
            one = vlmevalkit.read(row, source, number)
        else:
            one = plain.read(row, source, field)
        if one is not None:
            found.append(one)
    if not found:
        raise PredictionError(f"{path}: expected at least one prediction, got none")
    return format, found


def write_predictions(path: str | Path, format: str, rows: Sequence[Response]) -> None:
    """Write responses in the format of another program.

    Args:
        path: file to write; for VLMEvalKit its suffix is .tsv or .xlsx.
        format: one of `EXPORTS`.
        rows: responses, at least one, without generated images.

    Raises:
        ImportError: openpyxl is not installed.
        OSError: the file cannot be written.
        PredictionError: the format is none of them, or cannot hold a response.
    """
    check_export(path, format)
    path = Path(path)
    for row in rows:
        if row.generated is not None or (row.mask is not None and format != "setok"):
            raise PredictionError(f"{row.prompt.source}: expected a text, got an image or mask")
    try:
        lines = FORMATS[format].write(rows)
    except PredictionError:
        raise
    except ValueError as error:
        raise PredictionError(str(error)) from error
    if format == _VLMEVALKIT:
        for row in rows:
            check_encodable(row.text, row.prompt.source)
    else:
        write_file(path, "".join(to_json(line) + "\n" for line in lines))
        return
    _TABLES[path.suffix](path, lines)


def check_export(path: str | Path, format: str) -> None:
    """Check the name of a file and its format for `write_predictions`.

    Raises:
        PredictionError: there is no such format, or the suffix does not fit it.
    """
    if format not in EXPORTS:
        raise PredictionError(f"format: expected one of {', '.join(EXPORTS)}, got {format!r}")
    suffix = Path(path).suffix
    if format == _VLMEVALKIT and suffix not in _TABLES:
        raise PredictionError(f"{path}: expected a name with .tsv or .xlsx, got {suffix!r}")


def _format_of(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return the only format of the first row; a plain file has none of the others' fields."""
    source, row = rows[0]
    found = [name for name, one in FORMATS.items() if name != _PLAIN and one.matches(row)]
    if not found and plain.matches(row):
        return _PLAIN
    if len(found) == 1:
        return found[0]
    got = f"{' and '.join(found)}; see --format" if found else ", ".join(map(str, row))[:120]
    kind = "rows of one format" if found else f"the fields of a format, {', '.join(FORMATS)}"
    raise PredictionError(f"{source}: expected {kind}, got {got}")


def _questions(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return the rows of LLaVA's question file by id."""
    found: dict[str, Mapping[str, Any]] = {}
    for source, row in read_rows(path):
        number = id_of(row.get("question_id"), "question_id", source)
        if found.setdefault(number, row) != row:
            raise PredictionError(f"{source}: expected each question once, got {number} twice")
    return found
