"""Options of `setok cluster` that choose the clustering function and set its fields.

Choices and defaults stand here once more, because those of `setokim.visualization.functions` come
with torch, for which `--help` does not wait; tests/model/cli/test_cluster_functions.py holds both
together.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from setok_cli.errors import UsageError
from setok_cli.options import FIELD_OPTIONS, read_config

if TYPE_CHECKING:
    from setokim.visualization.functions import Config

FUNCTIONS = ("cluster_tokens", "dpc_knn", "threshold_greedy")
ORDERS = ("score", "index")
CAPS = ("diameter", "eccentricity")


def count_or_none(text: str) -> int | None:
    """Return the value of an option that is a count or none."""
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or none, got {text!r}") from None


# Of each field of the hard clusterings: arguments of argparse and the text of --help.
HARD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "num_clusters": (
        {"type": count_or_none, "metavar": "COUNT|none"},
        "max number of clusters of an image (dpc_knn: 64)",
    ),
    "threshold": (
        {"type": float, "metavar": "NUMBER"},
        "score that a centre must exceed (dpc_knn: none), or cosine similarity above which two "
        "patches are neighbours (threshold_greedy: 0.8)",
    ),
    "min_clusters": (
        {"type": int, "metavar": "COUNT"},
        "number of clusters if no score exceeds the threshold (dpc_knn: 1)",
    ),
    "order": ({"choices": ORDERS}, "order of the clusters (dpc_knn: score)"),
    "cap": ({"choices": CAPS}, "upper bound of the seed distance (dpc_knn: diameter)"),
}
# Fields of each function.
FIELDS = {
    "cluster_tokens": ("preset", *FIELD_OPTIONS),
    "dpc_knn": ("num_clusters", "threshold", "k", "min_clusters", "order", "cap"),
    "threshold_greedy": ("threshold",),
}


def add_function_options(parser: argparse.ArgumentParser) -> None:
    """Add `--function` and the fields of hard clusterings, beside those of `add_config_options`."""
    group = parser.add_argument_group(
        "other clustering functions",
        "The options above belong to cluster_tokens, those below to the functions in brackets, "
        "with their defaults. dpc_knn takes --k, too (default: 5).",
    )
    group.add_argument(
        "--function",
        choices=FUNCTIONS,
        default=FUNCTIONS[0],
        help="clustering function of setok_kernels (default: %(default)s)",
    )
    for name, (keywords, text) in HARD_OPTIONS.items():
        # A field that was not given stays absent: then its function has the default.
        group.add_argument(_flag(name), default=argparse.SUPPRESS, help=text, **keywords)


def read_function_config(arguments: argparse.Namespace) -> Config:
    """Return the options of the chosen function.

    Raises:
        UsageError: an option belongs to another function, or a value is out of range.
    """
    from setokim.visualization.functions import CONFIGS

    function, given = arguments.function, vars(arguments)
    own = FIELDS[function]
    for name in [*FIELDS["cluster_tokens"], *HARD_OPTIONS]:
        if name in given and name not in own:
            owners = " and ".join(other for other in FUNCTIONS if name in FIELDS[other])
            raise UsageError(
                f"{_flag(name)}: expected an option of {function}, got one of {owners}"
            )
    if function == "cluster_tokens":
        return read_config(arguments)
    try:
        return CONFIGS[function](**{name: given[name] for name in own if name in given})
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
