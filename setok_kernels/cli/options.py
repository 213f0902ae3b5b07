"""Options that commands share: the device, remote code, and every field of `ClusterConfig`.

Choices and defaults stand here once more, because those of `setok_kernels` come with torch, for
which `--help` does not wait; tests/cli/test_options.py holds both together.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from setok_cli.errors import UsageError

if TYPE_CHECKING:
    from setok_kernels import ClusterConfig

BACKENDS = ("auto", "cpp", "triton", "reference")
PRESETS = ("default", "paper")
KERNELS = ("gaussian", "laplacian", "epanechnikov")
ALPHAS = ("sigmoid", "kernel")
DISTANCE_SCALES = ("variance", "dim")


def positive_count(text: str) -> int:
    """Return the value of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def grid_size(text: str) -> tuple[int, int]:
    """Return the rows and columns of an option such as 27x27."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.lower())
    if not found:
        raise argparse.ArgumentTypeError(f"expected ROWSxCOLUMNS such as 27x27, got {text!r}")
    return int(found[1]), int(found[2])


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

# Of each field: arguments of argparse, its value in the default preset, and the text of --help.
FIELD_OPTIONS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "k": (_INT, 8, "neighbours in the local density"),
    "max_clusters": (_INT, 64, "max number of clusters of an image"),
    "kernel": (
        {"choices": KERNELS},
        "gaussian",
        "similarity as a function of the distance to a seed",
    ),
    "bandwidth": (
        _FLOAT,
        0.5,
        "scale of the distance; larger makes fewer, larger clusters",
    ),
    "beta": (_FLOAT, 0.1, "weight with which the seed score lowers a token's membership"),
    "temperature": (_FLOAT, 0.1, "softness of the membership"),
    "offset": (_FLOAT, 0.5, "similarity at which the membership is one half"),
    "alpha": (
        {"choices": ALPHAS},
        "sigmoid",
        "membership: a sigmoid of the kernel, or the clamped kernel",
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
        "stop when at most this fraction of the image is unclaimed",
    ),
    "min_mass": (_FLOAT, 0.0, "stop before a cluster of less than this many tokens"),
    "include_self": (_SWITCH, False, "a token counts among its own neighbours"),
}


def add_config_options(parser: argparse.ArgumentParser, without: Sequence[str] = ()) -> None:
    """Add `--preset` and one option per field of `ClusterConfig`.

    Args:
        parser: parser of the command.
        without: fields that the command sets by other options.
    """
    group = parser.add_argument_group(
        "clustering", "Options that are not given keep the value of the preset."
    )
    # Absent unless given, as the fields: other options may exclude it.
    group.add_argument(
        "--preset", choices=PRESETS, default=argparse.SUPPRESS, help=f"default: {PRESETS[0]}"
    )
    for name, (keywords, default, text) in FIELD_OPTIONS.items():
        if name in without:
            continue
        # A field that was not given stays absent, or it would override the preset.
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=argparse.SUPPRESS,
            help=f"{text} (default preset: {_show(default)})",
            **keywords,
        )


def add_device_option(parser: argparse.ArgumentParser, subject: str) -> None:
    """Add `--device`.

    Args:
        parser: parser of the command.
        subject: name in `--help` of the part that runs on the device.
    """
    parser.add_argument(
        "--device",
        default="cpu",
        help=f"device of {subject}, such as cuda or cuda:1 (default: %(default)s)",
    )


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add `--trust-remote-code`, without which no code of a model runs."""
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code in the folder of a Hugging Face model (default: refuse it)",
    )


def read_config(arguments: argparse.Namespace) -> ClusterConfig:
    """Return the configuration of parsed options.

    Raises:
        UsageError: a value is out of range.
    """
    from setok_kernels import ClusterConfig

    given = vars(arguments)
    preset = ClusterConfig.paper if given.get("preset") == "paper" else ClusterConfig
    overrides = {name: given[name] for name in FIELD_OPTIONS if name in given}
    try:
        return preset(**overrides)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
