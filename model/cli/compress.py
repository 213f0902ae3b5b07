"""`setok compress`: an answer about images with all visual tokens and with reduced ones."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setok_cli.device import usable_device
from setok_cli.errors import UsageError, missing_package, one_line
from setok_cli.options import (
    add_config_options,
    add_device_option,
    positive_count,
    read_config,
)
from setok_cli.output import add_json_option, print_json, print_to_stderr
from setokim.cli._images import read_image

if TYPE_CHECKING:
    from rich.table import Table

    from setokim.evaluation.existing_models import ExistingModel

_RATE = 0.25
# Rows of the table: name in the result, heading, and unit.
_ROWS = (
    ("visual_tokens", "visual tokens", "count"),
    ("prompt_tokens", "prompt tokens", "count"),
    ("prefill_s", "prefill", "seconds"),
    ("answer_s", "answer", "seconds"),
    ("new_tokens", "tokens of the answer", "count"),
    ("cache_bytes", "KV cache after the prefill", "bytes"),
)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `setok`."""
    parser = commands.add_parser(
        "compress",
        help="reduce the visual tokens of a vision-language model and compare its answers",
        description="Loads a vision-language model of transformers from a folder, answers a "
        "question about images with all visual tokens and with clustered ones in turns, and prints "
        "tokens, times, memory and both answers. docs/existing-models.md lists the families.",
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL_DIR",
        help="folder with the weights and the processor of a model; nothing is downloaded",
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="images to ask about")
    parser.add_argument("--question", required=True, metavar="TEXT", help="question to answer")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--rate",
        type=_rate,
        metavar="FRACTION",
        help=f"number of clusters as a fraction of each image's visual tokens (default: {_RATE})",
    )
    budget.add_argument(
        "--num-clusters",
        type=positive_count,
        metavar="COUNT",
        help="number of clusters of an image",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="exactly that many visual tokens (default: at most that many clusters, and one token "
        "for what no cluster claims)",
    )
    parser.add_argument(
        "--features",
        choices=("encoder", "projected"),
        default="encoder",
        help="features that are clustered: those of the vision encoder, or those behind the "
        "projector (default: %(default)s)",
    )
    parser.add_argument(
        "--merge",
        choices=("hard", "soft"),
        default="hard",
        help="mean of the tokens of a cluster, or of all tokens by membership "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--positions",
        choices=("compact", "original"),
        default="compact",
        help="positions of the kept tokens: consecutive ones, or those they had "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=positive_count,
        default=64,
        metavar="COUNT",
        help="max length of an answer in tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=positive_count,
        default=3,
        metavar="COUNT",
        help="number of timed answers of each kind (default: %(default)s)",
    )
    add_device_option(parser, "the model")
    add_json_option(parser)
    add_config_options(parser, without=("max_clusters",))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare the answers; return 0.

    Raises:
        UsageError: an argument does not fit, or a package is not installed.
    """
    try:
        import rich  # noqa: F401

        from setok_kernels.integrations.transformers import reduce_visual_tokens
        from setokim.evaluation.reduction_cost import compare_costs
    except ImportError as error:
        raise missing_package(error, "cli,model") from error
    config = read_config(arguments)
    images = [read_image(path, "IMAGE") for path in arguments.images]
    options = reduction_options(arguments)
    with print_to_stderr(arguments.json):
        model = load_existing(arguments.model, arguments.device)

        def reduce(whole: Any) -> Any:
            return reduce_visual_tokens(whole, config, **options)

        limits = (arguments.max_new_tokens, arguments.rounds)
        try:
            # Before the first answer, which may take minutes.
            reduce(model.model).restore()
            found = compare_costs(model, images, arguments.question, reduce, *limits)
        except ValueError as error:
            raise UsageError(one_line(error)) from error
    if arguments.json:
        print_json(
            {
                "model": str(arguments.model),
                "images": [str(path) for path in arguments.images],
                "question": arguments.question,
                "device": arguments.device,
                "options": options,
                "config": config.to_dict(),
                **found,
            }
        )
    else:
        _print(found)
    return 0


def reduction_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `reduce_visual_tokens` beside the configuration."""
    names = ("exact", "features", "merge", "positions")
    options = {name: getattr(arguments, name) for name in names}
    if arguments.num_clusters is not None:
        return {"num_clusters": arguments.num_clusters, **options}
    return {"rate": _RATE if arguments.rate is None else arguments.rate, **options}


def load_existing(folder: Path, device: str) -> ExistingModel:
    """Load the model of `MODEL_DIR`.

    Raises:
        UsageError: the folder has no whole model of a supported kind, or a package is missing.
    """
    from setokim.evaluation.existing_models import ExistingModel

    usable = usable_device(device)
    try:
        return ExistingModel.load(folder, usable)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            reason = "it brings Python code of its own, which `setok compress` does not run"
            raise UsageError(f"MODEL_DIR: cannot load {folder}: {reason}") from error
        raise UsageError(f"MODEL_DIR: cannot load {folder}: {one_line(error)}") from error
    except ModuleNotFoundError as error:
        raise missing_package(error, subject=f"MODEL_DIR: {folder} ") from error
    except ImportError as error:
        raise UsageError(f"MODEL_DIR: cannot load {folder}: {one_line(error)}") from error


def cost_table(found: dict[str, dict[str, Any]]) -> Table:
    """Lay out the costs of both answers and the ratio of the first to the second."""
    from rich.table import Table

    table = Table()
    table.add_column("")
    for heading in ("all tokens", "reduced", "all / reduced"):
        table.add_column(heading, justify="right")
    for name, heading, unit in _ROWS:
        values = [found[side][name] for side in ("all", "reduced")]
        ratio = f"{values[0] / values[1]:.2f}" if values[1] else "–"
        table.add_row(heading, *(_shown(value, unit) for value in values), ratio)
    return table


def _print(found: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console

    console = Console()
    console.print(cost_table(found))
    for side, name in (("all", "all tokens"), ("reduced", "reduced")):
        # As plain text: rich would take "[draft]" for markup.
        console.print(f"{name}: {found[side]['answer']}", markup=False, highlight=False)


def _shown(value: float, unit: str) -> str:
    if unit == "seconds":
        return f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.2f} s"
    if unit == "bytes":
        return f"{value / 2**20:,.2f} MiB"
    return f"{value:,}"


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and at most 1, got {text!r}")
    return rate
