"""Command-line options of `setok bench` and `python bench/run.py`.

Imports nothing heavy, so that `setok --help` stays fast.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from setok_cli.output import add_json_option

SUITE_HELP = {
    "quick": "a minute or less",
    "cpu": "all measurements of docs/performance.md for a CPU",
    "gpu": "all measurements for a GPU, the most important first, in ten minutes; resumes an "
    "earlier run into the same file",
    "pipeline": "encoder, clustering and language model",
    "vlm": "prefill, answer and KV cache of decoders that read all visual tokens or clusters",
}
DTYPES = ("float32", "bfloat16", "float16")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options."""
    suites = "; ".join(f"{name}: {text}" for name, text in SUITE_HELP.items())
    parser.add_argument("--suite", choices=SUITE_HELP, default="quick", help=suites)
    parser.add_argument(
        "--device", default="", help="device, cpu or cuda (default: cuda if there is one)"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="OP", help="operations or parts to measure"
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=[],
        metavar="BxNxD",
        help="shapes (default: those of the suite)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="dtype (default: that of the suite)")
    parser.add_argument(
        "--peer-root",
        type=Path,
        metavar="DIR",
        help="folder with clones of TCFormer, Chat-UniVi, SeTok and DiVT, to time them too",
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=101,
        help="max number of samples of a call (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, help="timing of each row in seconds (default: that of the suite)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file for the result")
    parser.add_argument(
        "--plan",
        nargs="*",
        type=Path,
        metavar="RESULT",
        help="print the GPU-hours of the paper's training from measured results, or without RESULT "
        "from estimates; measure nothing",
    )
    add_json_option(parser)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number
