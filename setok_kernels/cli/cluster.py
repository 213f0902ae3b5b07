"""`setok cluster`: pictures in, cluster maps and their data out."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from setok_kernels.cli.device import usable_device
from setok_kernels.cli.errors import UsageError
from setok_kernels.cli.options import add_config_options, read_config
from setok_kernels.dispatch import backends, select_backend

if TYPE_CHECKING:
    from rich.table import Table

    from setok_kernels.cli.pictures import Method, PictureClusters
    from setok_kernels.config import ClusterConfig


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `setok`."""
    parser = commands.add_parser(
        "cluster",
        help="draw the semantic clusters of pictures",
        description="Writes NAME.clusters.png (photograph and cluster map) and "
        "NAME.clusters.json (clusters, label map, options, versions) for every picture.",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IMAGE|DIR",
        help="pictures, or folders, in which all pictures are taken in sorted order",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where results go")
    parser.add_argument(
        "--recursive", action="store_true", help="also search the folders inside a folder"
    )
    parser.add_argument(
        "--encoder",
        default="patch-statistics",
        metavar="NAME|PATH",
        help="patch-statistics (built in, the default), or a vision model on the Hugging Face "
        "hub or in a folder",
    )
    parser.add_argument(
        "--grid",
        type=_grid,
        metavar="HxW",
        help="rows and columns of patches (default: 27x27, or the model's own)",
    )
    parser.add_argument("--backend", choices=("auto", *backends()), default="auto")
    parser.add_argument(
        "--device", default="cpu", help="where the model and the clustering run (default: cpu)"
    )
    parser.add_argument(
        "--batch-size",
        type=_positive,
        default=8,
        metavar="COUNT",
        help="pictures encoded and clustered together (default: %(default)s)",
    )
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Clusters the pictures; returns 1 if one could not be read, else 0.

    Raises:
        UsageError: There is nothing to do, or it cannot be done as asked.
    """
    _require_extras()
    from rich.console import Console
    from rich.progress import track

    from setok_kernels.cli.pictures import RESULT_MARK, process_files
    from setokim import UnreadableImageError, find_images
    from setokim.images import IMAGE_SUFFIXES

    config = read_config(arguments)
    files = find_images(arguments.inputs, arguments.recursive, skip_suffix=f"{RESULT_MARK}.png")
    if not files:
        looked_for = " ".join(sorted(IMAGE_SUFFIXES))
        raise UsageError(
            f"no pictures found in {', '.join(arguments.inputs)} (looked for {looked_for})"
        )
    method = make_method(
        arguments.encoder, arguments.grid, config, arguments.backend, arguments.device
    )
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {arguments.out}: {error}") from error

    rows, failures = [], []
    errors = Console(stderr=True)
    results = process_files(files, arguments.out, method, arguments.batch_size)
    for result in track(results, "Clustering", total=len(files), console=errors):
        if isinstance(result, UnreadableImageError):
            failures.append(result)
        else:
            rows.append(summarise(result))
    if rows:
        Console().print(summary_table(rows))
        print(f"Results are in {arguments.out}")
    for failure in failures:
        print(f"setok cluster: {failure}", file=sys.stderr)
    return 1 if failures else 0


def make_method(
    encoder_name: str,
    grid: tuple[int, int] | None,
    config: ClusterConfig,
    backend: str = "auto",
    device_name: str = "cpu",
) -> Method:
    """Builds the encoder and checks that the device and the backend can be used.

    Raises:
        UsageError: One of them cannot.
    """
    from setok_kernels.cli.pictures import Method
    from setokim import build_encoder

    device = usable_device(device_name)
    try:
        select_backend(backend, device)
        encoder = build_encoder(encoder_name, grid).to(device)
    except ImportError as error:
        raise UsageError(
            f'--encoder {encoder_name} needs {error.name}: pip install "setok-kernels[cli,model]"'
        ) from error
    except (RuntimeError, ValueError) as error:
        raise UsageError(str(error)) from error
    return Method(encoder, encoder_name, config, backend, device_name)


def summarise(picture: PictureClusters) -> tuple[str, ...]:
    """One row of the table, without keeping the picture itself in memory."""
    return (
        picture.name,
        str(picture.tokens),
        str(picture.distinct_labels),
        f"{picture.residual_share:.1%}",
        f"{picture.encode_seconds * 1e3:.1f}",
        f"{picture.cluster_seconds * 1e3:.1f}",
    )


def summary_table(rows: Sequence[tuple[str, ...]]) -> Table:
    """Lays out the rows of `summarise`."""
    from rich.table import Table

    table = Table()
    table.add_column("picture", overflow="fold")
    for heading in ("tokens", "labels", "residual", "encode ms", "cluster ms"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _require_extras() -> None:
    try:
        import PIL  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        raise UsageError(f'needs {error.name}: pip install "setok-kernels[cli]"') from error


def _grid(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.lower())
    if not found:
        raise argparse.ArgumentTypeError(f"expected ROWSxCOLUMNS such as 27x27, got {text!r}")
    return int(found[1]), int(found[2])


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)
