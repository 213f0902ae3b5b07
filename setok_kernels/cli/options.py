"""Every field of `ClusterConfig` as a command-line option, generated from the dataclass."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from setok_kernels.cli.errors import UsageError
from setok_kernels.config import ALPHAS, DISTANCE_SCALES, KERNELS, ClusterConfig

PRESETS = {"default": ClusterConfig, "paper": ClusterConfig.paper}


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

# How argparse reads each field, and what --help says about it.
FIELD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "k": (_INT, "neighbours in the local density"),
    "max_clusters": (_INT, "most clusters per picture"),
    "kernel": ({"choices": KERNELS}, "how similarity falls with the distance to a seed"),
    "bandwidth": (_FLOAT, "distance over which it falls; larger makes fewer, larger clusters"),
    "beta": (_FLOAT, "how much the seed score lowers a token's membership"),
    "temperature": (_FLOAT, "softness of the membership"),
    "offset": (_FLOAT, "similarity at which the membership is one half"),
    "alpha": ({"choices": ALPHAS}, "membership by a sigmoid or by the clamped kernel itself"),
    "distance_scale": (
        {"type": _distance_scale, "metavar": "variance|dim|NUMBER"},
        "factor of the squared distance",
    ),
    "score_norm": ({"type": _score_norm, "metavar": "max|none"}, "normaliser of the seed score"),
    "distinct_seeds": (_SWITCH, "no token becomes a seed twice"),
    "stop_residual": (_FLOAT, "stop when no more than this share of the picture is unclaimed"),
    "min_mass": (_FLOAT, "stop before a cluster of less than this many tokens"),
    "include_self": (_SWITCH, "a token counts among its own neighbours"),
}


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--preset` and one option per field of `ClusterConfig`."""
    group = parser.add_argument_group(
        "clustering", "What is not given keeps the value of the preset."
    )
    group.add_argument(
        "--preset", choices=tuple(PRESETS), default="default", help="default: %(default)s"
    )
    for field in dataclasses.fields(ClusterConfig):
        how, text = FIELD_OPTIONS[field.name]
        flag = "--" + field.name.replace("_", "-")
        # A field that was not given must stay absent, or it would overrule the preset.
        group.add_argument(
            flag,
            dest=field.name,
            default=argparse.SUPPRESS,
            help=f"{text} (default preset: {_show(field.default)})",
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
    given = vars(arguments)
    overrides = {name: given[name] for name in FIELD_OPTIONS if name in given}
    try:
        return PRESETS[arguments.preset](**overrides)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def _show(value: Any) -> str:
    return {None: "none", True: "yes", False: "no"}.get(value, str(value))
