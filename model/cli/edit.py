"""`setok edit`: a picture and what to change in, a picture out."""

from __future__ import annotations

import argparse
from pathlib import Path

from setokim.cli._speaking import add_speaking_options, draw_one


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `setok`."""
    parser = commands.add_parser(
        "edit",
        help="draw a picture again, changed as a text asks",
        description="Gives picture and text to the model and writes the picture that it draws.",
    )
    parser.add_argument("text", metavar="TEXT", help="what to change, in the words of the training")
    parser.add_argument(
        "--image", required=True, type=Path, metavar="FILE", help="the picture to change"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the new picture")
    add_speaking_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draws; returns 1 if the model drew nothing, else 0.

    Raises:
        UsageError: it cannot be done as asked.
    """
    return draw_one("edit", arguments, (arguments.image,))
