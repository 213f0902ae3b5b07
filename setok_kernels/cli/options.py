"""Every field of `ClusterConfig` as a command-line option.

Choices and defaults stand here once more, because those of `setok_kernels` come with torch, for
which `--help` does not wait; tests/cli/test_options.py holds both together.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from setok_cli.errors import UsageError

if TYPE_CHECKING:
    from setok_kernels import ClusterConfig

BACKENDS = ("auto", "cpp", "triton", "reference")
PRESETS = ("default", "paper")
KERNELS = ("gaussian", "laplacian", "epanechnikov")
ALPHAS = ("sigmoid", "kernel")
DISTANCE_SCALES = ("variance", "dim")


def _distance_scale(text: str) -> str | float:
    if text in DISTANCE_SCALES:
        return text
    try:
        return float(text)
    except ValueError:
        choices = ", ".join(DISTANCE_SCALES)
        raise argparse.ArgumentTypeError(f"expected {choices} or a number, got {text!r}") from None


def _score_norm(text: str) -> str | None:
    try:
        return {"max": "max", "none": None}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"expected max or none, got {text!r}") from None


_SWITCH = {"action": argparse.BooleanOptionalAction}
_FLOAT = {"type": float, "metavar": "NUMBER"}
_INT = {"type": int, "metavar": "COUNT"}

# Of each field: how argparse reads it, its value in the default preset, and what --help says.
FIELD_OPTIONS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "k": (_INT, 8, "neighbours in the local density"),
    "max_clusters": (_INT, 64, "most clusters per picture"),
    "kernel": (
        {"choices": KERNELS},
        "gaussian",
        "how similarity falls with the distance to a seed",
    ),
    "bandwidth": (_FLOAT, 0.5, "distance over which it falls; larger makes fewer, larger clusters"),
    "beta": (_FLOAT, 0.1, "how much the seed score lowers a token's membership"),
    "temperature": (_FLOAT, 0.1, "softness of the membership"),
    "offset": (_FLOAT, 0.5, "similarity at which the membership is one half"),
    "alpha": (
        {"choices": ALPHAS},
        "sigmoid",
        "membership by a sigmoid or by the clamped kernel itself",
    ),
    "distance_scale": (
        {"type": _distance_scale, "metavar": "variance|dim|NUMBER"},
        "variance",
        "factor of the squared distance",
    ),
    "score_norm": (
        {"type": _score_norm, "metavar": "max|none"},
        "max",
        "normaliser of the seed score",
    ),
    "distinct_seeds": (_SWITCH, True, "no token becomes a seed twice"),
    "stop_residual": (
        _FLOAT,
        0.02,
        "stop when no more than this share of the picture is unclaimed",
    ),
    "min_mass": (_FLOAT, 0.0, "stop before a cluster of less than this many tokens"),
    "include_self": (_SWITCH, False, "a token counts among its own neighbours"),
}


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--preset` and one option per field of `ClusterConfig`."""
    group = parser.add_argument_group(
        "clustering", "What is not given keeps the value of the preset."
    )
    group.add_argument("--preset", choices=PRESETS, default="default", help="default: %(default)s")
    for name, (how, default, text) in FIELD_OPTIONS.items():
        # A field that was not given must stay absent, or it would overrule the preset.
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=argparse.SUPPRESS,
            help=f"{text} (default preset: {_show(default)})",
            **how,
        )


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--trust-remote-code`, without which no model brings code that is run."""
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that the folder of a Hugging Face model brings (default: refuse it)",
    )


def read_config(arguments: argparse.Namespace) -> ClusterConfig:
    """Makes the configuration from parsed options.

    Raises:
        UsageError: A value is out of range.
    """
    from setok_kernels import ClusterConfig

    preset = ClusterConfig.paper if arguments.preset == "paper" else ClusterConfig
    given = vars(arguments)
    overrides = {name: given[name] for name in FIELD_OPTIONS if name in given}
    try:
        return preset(**overrides)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
