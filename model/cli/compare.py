"""`setok compare`: whether the metrics of two runs of `setok eval` differ."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setok_cli.errors import UsageError, missing_package
from setok_cli.options import positive_count
from setok_cli.output import add_json_option, print_json

if TYPE_CHECKING:
    from setokim.evaluation.figures import Figures
    from setokim.evaluation.resampling import Difference


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `setok`."""
    parser = commands.add_parser(
        "compare",
        help="test whether the metrics of two runs of `setok eval` differ",
        description="Compares two folders of `setok eval` of one benchmark on the same samples. "
        "Prints each metric of both, their difference A - B with a bootstrapped 95 % interval, "
        "and the p-value of a paired permutation test. docs/evaluation.md explains both.",
    )
    parser.add_argument("a", type=Path, metavar="A", help="folder of results of the first run")
    parser.add_argument("b", type=Path, metavar="B", help="folder of results of the second run")
    parser.add_argument(
        "--resamples",
        type=positive_count,
        default=1000,
        metavar="COUNT",
        help="number of resamples and permutations; the smallest p-value is 1 / (1 + COUNT) "
        "(default: %(default)s)",
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare two runs; return 0.

    Raises:
        UsageError: the folders do not fit, or a package is not installed.
    """
    try:
        from setokim.evaluation.comparison import compare_folders
    except ImportError as error:
        raise missing_package(error, "cli,model") from error
    try:
        name, one, other, found = compare_folders(arguments.a, arguments.b, arguments.resamples)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    if arguments.json:
        rows = {metric: _row(metric, one, other, own) for metric, own in found.items()}
        only = {"a": sorted(one.keys() - found), "b": sorted(other.keys() - found)}
        document = {"benchmark": name, "resamples": arguments.resamples, "figures": rows}
        print_json(document | {"only": only})
        return 0
    print(f"{'metric':<32} {'A':>10} {'B':>10} {'A - B':>10}  {'95 % interval':<24} p-value")
    for metric, own in found.items():
        ends = "" if own.interval is None else f"[{own.interval[0]:.4g}, {own.interval[1]:.4g}]"
        p_value = "" if own.p_value is None else f"{own.p_value:.4f}"
        values = f"{one[metric]:>10.4g} {other[metric]:>10.4g} {own.difference:>10.4g}"
        print(f"{metric:<32} {values}  {ends:<24} {p_value}".rstrip())
    for side, own in (("A", one), ("B", other)):
        if missing := [metric for metric in own if metric not in found]:
            print(f"only in {side}: {', '.join(missing)}")
    return 0


def _row(metric: str, one: Figures, other: Figures, own: Difference) -> dict[str, Any]:
    figure = one.details[metric]
    return {
        "a": one[metric],
        "b": other[metric],
        "difference": own.difference,
        "interval": own.interval,
        "p_value": own.p_value,
        "samples": figure.samples,
        "unit": figure.unit,
        "definition": figure.definition,
    }
