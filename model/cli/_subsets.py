"""Options for a part of a benchmark, shared by the commands that score."""

from __future__ import annotations

import argparse


def add_subset_options(parser: argparse.ArgumentParser) -> None:
    """Add `--split` and `--samples`."""
    parser.add_argument("--split", metavar="NAME", help="split (default: the benchmark's own)")
    parser.add_argument(
        "--samples", type=int, metavar="COUNT", help="number of samples, from the first on"
    )
