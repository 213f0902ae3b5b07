"""`setok generate`: a description in, a picture out."""

from __future__ import annotations

import argparse
from pathlib import Path

from setokim.cli._speaking import add_speaking_options, draw_one


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `setok`."""
    parser = commands.add_parser(
        "generate",
        help="draw what a text asks for",
        description="Gives the text to the model as it is and writes the picture that it draws.",
    )
    parser.add_argument("text", metavar="TEXT", help="what to draw, in the words of the training")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the picture")
    add_speaking_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draws; returns 1 if the model drew nothing, else 0.

    Raises:
        UsageError: it cannot be done as asked.
    """
    return draw_one("generate", arguments, ())
