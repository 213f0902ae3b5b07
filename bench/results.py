"""Reading and writing of results, and their check against `schema.json`."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

from setok_kernels.extras import from_extra

SCHEMA_FILE = Path(__file__).with_name("schema.json")


def load_result(path: Path) -> dict:
    """Read a result that `run.py --out` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a result; the message has the position of the error.
    """
    try:
        result = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    try:
        validate(result)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return result


def to_json(result: dict) -> str:
    """Return the result as JSON, with the samples of an implementation on one line."""
    text = json.dumps(result, indent=1)
    return re.sub(r"\[\s+([-+.\de,\s]+?)\s+\]", _on_one_line, text) + "\n"


def _on_one_line(found: re.Match) -> str:
    return f"[{' '.join(found[1].split())}]"


def validate(result) -> None:
    """Check a result against the schema.

    Raises:
        ValueError: the result does not fit; the message has position, expected and actual value.
        MissingExtraError: jsonschema is not installed.
    """
    best_match, validator = checker()
    error = best_match(validator.iter_errors(result))
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "the result"
        raise ValueError(f"{where}: {error.message}")


def row_key(row: dict) -> tuple:
    """Return the key by which two results have the same row."""
    return (row["op"], row["group"], *row["shape"].values())


def timed(row: dict) -> dict[str, dict]:
    """Return the implementations of a row that were timed."""
    return {name: c for name, c in row["contenders"].items() if c["status"] == "timed"}


@functools.lru_cache(maxsize=1)
def checker():
    """Return the function that selects the most relevant error, and the validator.

    Long measurements call it first, so that a missing package is reported early.

    Raises:
        MissingExtraError: jsonschema is not installed.
    """
    with from_extra("bench"):
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match

    schema = json.loads(SCHEMA_FILE.read_text())
    Draft202012Validator.check_schema(schema)
    return best_match, Draft202012Validator(schema)
