"""Results on disk: reading them, and checking them against `schema.json`."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

from setok_kernels.extras import from_extra

SCHEMA_FILE = Path(__file__).with_name("schema.json")


def load_result(path: Path) -> dict:
    """Reads a result that `run.py --out` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no result; the message says where it goes wrong.
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
    """For a file, with the samples of a contender in one line."""
    text = json.dumps(result, indent=1)
    return re.sub(r"\[\s+([-+.\de,\s]+?)\s+\]", _on_one_line, text) + "\n"


def _on_one_line(found: re.Match) -> str:
    return f"[{' '.join(found[1].split())}]"


def validate(result) -> None:
    """Checks a result against the schema.

    Raises:
        ValueError: names the place, what was expected and what came.
        MissingExtraError: as of `checker`.
    """
    best_match, validator = checker()
    error = best_match(validator.iter_errors(result))
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "the result"
        raise ValueError(f"{where}: {error.message}")


def row_key(row: dict) -> tuple:
    """What makes a row the same in two results."""
    return (row["op"], row["group"], *row["shape"].values())


def timed(row: dict) -> dict[str, dict]:
    """The contenders of a row that were timed."""
    return {name: c for name, c in row["contenders"].items() if c["status"] == "timed"}


@functools.lru_cache(maxsize=1)
def checker():
    """What finds the worst of the errors, and the validator that lists them.

    Who is going to measure for minutes calls it first, so that a missing package is told before.

    Raises:
        MissingExtraError: jsonschema is not installed.
    """
    with from_extra("bench"):
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match

    schema = json.loads(SCHEMA_FILE.read_text())
    Draft202012Validator.check_schema(schema)
    return best_match, Draft202012Validator(schema)
