"""Output for programs: `--json`, one document in place of the tables of a command."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document in place of the table; all else goes to standard error",
    )


def print_json(document: Any) -> None:
    """Print a document of plain values; a number that is not finite, which JSON lacks, is null."""
    import json

    print(json.dumps(_finite(document), indent=2, allow_nan=False))


def print_to_stderr(enabled: bool) -> contextlib.AbstractContextManager:
    """Redirect the standard output within the block to standard error.

    Args:
        enabled: switch of the redirection; False changes nothing.
    """
    return contextlib.redirect_stdout(sys.stderr) if enabled else contextlib.nullcontext()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    # Only NaN differs from itself.
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value
