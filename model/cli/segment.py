"""`setok segment`: a picture and what to find in, a mask out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from setokim.cli._speaking import (
    add_speaking_options,
    answer_once,
    check_out,
    make_speaker,
    mask_of,
    read_picture,
    save_mask,
    words_of,
)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `setok`."""
    parser = commands.add_parser(
        "segment",
        help="mask what a text asks for",
        description="Gives picture and text to the model and writes its mask, white on black, in "
        "the picture's own size.",
    )
    parser.add_argument("text", metavar="TEXT", help="what to find, in the words of the training")
    parser.add_argument(
        "--image", required=True, type=Path, metavar="FILE", help="where to look for it"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the mask, a PNG")
    add_speaking_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Segments; returns 1 if the model gave no mask, else 0.

    Raises:
        UsageError: it cannot be done as asked.
    """
    picture = read_picture(arguments.image)
    # Other formats blur the edge.
    check_out(arguments.out, (".png",))
    speaker = make_speaker(arguments)
    answer = answer_once(speaker, arguments.text, [picture])
    if not answer.masks:
        said = words_of(speaker, answer)
        print(f"setok segment: the model gave no mask; it said: {said}", file=sys.stderr)
        return 1
    mask = mask_of(answer.masks[0])
    save_mask(mask, arguments.out)
    print(f"Mask of {mask.mean():.1%} of the pixels is in {arguments.out}")
    if len(answer.masks) > 1:
        print(
            f"setok segment: the model gave {len(answer.masks)} masks, this is the first",
            file=sys.stderr,
        )
    return 0
