"""`setok bench`: speed and memory of the clustering, compared with baselines and the roofline."""

from __future__ import annotations

import argparse

from setok_bench.options import add_options
from setok_cli.errors import UsageError, missing_package


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `setok`."""
    parser = commands.add_parser(
        "bench",
        help="measure throughput, memory, and ratios to baselines and to the roofline's floor",
        description="Checks the result of every implementation, times the correct ones in turns, "
        "and prints medians, ratios and conditions.",
    )
    add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the suite; return 1 if a backend of ours gave a wrong result, else 0.

    Raises:
        UsageError: the options do not fit, a file cannot be read or written, or a package is not
            installed.
    """
    try:
        from setok_bench import run as bench

        return bench.run(arguments)
    except ImportError as error:
        raise missing_package(error, "bench") from error
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
