"""`setok cluster`: images in, cluster maps and their data out."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setok_cli.device import usable_device
from setok_cli.errors import UsageError, missing_package
from setok_cli.options import (
    BACKENDS,
    add_config_options,
    add_device_option,
    add_trust_option,
    grid_size,
    positive_count,
)
from setok_cli.output import add_json_option, print_json
from setokim.cli._functions import add_function_options, read_function_config

if TYPE_CHECKING:
    from rich.table import Table

    from setokim.data.image_processing import UnreadableImageError
    from setokim.visualization.functions import Config
    from setokim.visualization.image_clusters import ImageClusters, Method

ANIMATIONS = ("gif", "webp")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `setok`."""
    parser = commands.add_parser(
        "cluster",
        help="draw the semantic clusters of images",
        description="Writes NAME.clusters.png (photograph and cluster map) and "
        "NAME.clusters.json (clusters, label map, options, versions) for every image, and on "
        "request NAME.clusters.gif or .webp (the steps of Algorithm 1).",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IMAGE|DIR",
        help="images, or folders, whose images are taken in sorted order",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of results")
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
        type=grid_size,
        metavar="HxW",
        help="rows and columns of patches (default: 27x27, or the model's own)",
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    add_device_option(parser, "the encoder and the clustering")
    parser.add_argument(
        "--batch-size",
        type=positive_count,
        default=8,
        metavar="COUNT",
        help="number of images encoded and clustered together (default: %(default)s)",
    )
    parser.add_argument(
        "--animate",
        choices=ANIMATIONS,
        help="also write an animation of what each step of cluster_tokens claims; gif plays "
        "everywhere, webp is smaller and has all colours",
    )
    add_json_option(parser)
    add_trust_option(parser)
    add_config_options(parser)
    add_function_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Cluster the images; return 1 if one could not be read, else 0.

    Raises:
        UsageError: there are no images, or an argument does not fit.
    """
    _require_extras()
    from setokim.cli.names import IMAGE_ENDINGS, RESULT_MARK
    from setokim.data.image_processing import IMAGE_SUFFIXES, scan_images
    from setokim.utils.file_names import printable_name
    from setokim.utils.folder_lock import FolderInUseError, locked

    config = read_function_config(arguments)
    _check_animation(arguments.animate, arguments.function)
    results = tuple(f"{RESULT_MARK}{ending}" for ending in IMAGE_ENDINGS)
    files, refused = scan_images(arguments.inputs, arguments.recursive, results)
    if not files and not refused:
        looked_for = " ".join(sorted(IMAGE_SUFFIXES))
        inputs = ", ".join(map(printable_name, arguments.inputs))
        raise UsageError(f"no images found in {inputs} (looked for {looked_for})")
    method = make_method(
        arguments.encoder,
        arguments.grid,
        config,
        arguments.backend,
        arguments.device,
        arguments.trust_remote_code,
    )
    _require_memory(method, min(len(files), arguments.batch_size))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(arguments.out, "--out"))
        except FolderInUseError as error:
            raise UsageError(str(error)) from error
        except (OSError, ValueError) as error:
            shown = printable_name(arguments.out)
            raise UsageError(f"cannot make the folder {shown} or write into it: {error}") from error
        failures = _process(files, refused, method, arguments)
    return 1 if failures else 0


def _process(
    files: Sequence[Path],
    refused: Sequence[UnreadableImageError],
    method: Method,
    arguments: argparse.Namespace,
) -> list[UnreadableImageError]:
    """Cluster the files and report, also on the images before an interruption.

    Returns:
        The errors of images that could not be read, `refused` among them.
    """
    from rich.console import Console
    from rich.progress import track

    from setokim.cli.cluster_results import process_files
    from setokim.data.image_processing import UnreadableImageError

    rows, failures = [], [*refused]
    results = process_files(files, arguments.out, method, arguments.batch_size, arguments.animate)
    errors = Console(stderr=True)
    try:
        for result in track(results, "Clustering", total=len(files), console=errors):
            if isinstance(result, UnreadableImageError):
                failures.append(result)
            else:
                rows.append(summarise(result))
    except BaseException:
        # Finished results stay and are listed; a closed output must not hide the reason.
        with contextlib.suppress(OSError):
            _report(rows, failures, arguments)
        raise
    _report(rows, failures, arguments)
    return failures


def _report(
    rows: Sequence[dict[str, Any]],
    failures: Sequence[UnreadableImageError],
    arguments: argparse.Namespace,
) -> None:
    from rich.console import Console

    from setokim.utils.file_names import printable_name

    out = printable_name(arguments.out)
    for failure in failures:
        print(f"setok cluster: {failure}", file=sys.stderr)
    if arguments.json:
        print_json({"images": rows, "unreadable": [str(one) for one in failures], "out": out})
    elif rows:
        Console().print(summary_table(rows))
        print(f"Results are in {out}")


def make_method(
    encoder_name: str,
    grid: tuple[int, int] | None,
    config: Config,
    backend: str = "auto",
    device_name: str = "cpu",
    trust_remote_code: bool = False,
) -> Method:
    """Build the encoder and check that device and backend can be used.

    Args:
        encoder_name: name as of `--encoder`.
        grid: rows and columns of patches; None for the encoder's own.
        config: options of the clustering.
        backend: backend of the clustering.
        device_name: name of the device of encoder and clustering.
        trust_remote_code: permission to run Python code in the encoder's folder.

    Raises:
        UsageError: one of them cannot be used.
    """
    from setok_kernels.dispatch import select_backend
    from setokim import build_encoder
    from setokim.visualization.image_clusters import Method

    device = usable_device(device_name)
    try:
        select_backend(backend, device)
        encoder = build_encoder(encoder_name, grid, trust_remote_code).to(device)
    except ImportError as error:
        raise missing_package(error, "cli,model", f"--encoder {encoder_name} ") from error
    except (RuntimeError, ValueError) as error:
        raise UsageError(str(error)) from error
    return Method(encoder, encoder_name, config, backend, device_name)


def summarise(result: ImageClusters) -> dict[str, Any]:
    """Return the row of the table for an image, without keeping the image in memory."""
    from setokim.utils.file_names import printable_name

    return {
        "image": printable_name(result.name),
        "tokens": result.tokens,
        "labels": result.distinct_labels,
        "residual": result.residual_fraction,
        "encode_ms": result.encode_seconds * 1e3,
        "cluster_ms": result.cluster_seconds * 1e3,
    }


def summary_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Lay out the rows of `summarise`."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("image", overflow="fold")
    for heading in ("tokens", "labels", "residual", "encode ms", "cluster ms"):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = (
            row["image"],
            str(row["tokens"]),
            str(row["labels"]),
            f"{row['residual']:.1%}",
            f"{row['encode_ms']:.1f}",
            f"{row['cluster_ms']:.1f}",
        )
        # As text: in a string, rich would take "[draft]" for markup.
        table.add_row(*map(Text, cells))
    return table


def _require_memory(method: Method, batch_size: int) -> None:
    """Refuse a grid whose tensors alone exceed the free memory, before they are allocated."""
    from setokim.utils.host_memory import require_memory

    rows, columns = method.encoder.grid
    pixels = 3 * math.prod(method.encoder.pixel_size)
    per_patch = method.encoder.feature_dim + _mask_rows(method.config, rows * columns)
    needed = max(
        # While the last image of a batch is scaled: the batch, its bytes, two copies in float64.
        pixels * (4 * batch_size + 17),
        # While the batch is encoded: its pixels and a copy. Afterwards: features, masks on the
        # device, and masks on the host.
        pixels * 8 * batch_size,
        rows * columns * per_patch * 4 * batch_size,
    )
    try:
        require_memory(needed, f"--grid {rows}x{columns}")
    except ValueError as error:
        raise UsageError(f"{error}; --batch-size is {batch_size}") from error


def _mask_rows(config: Config, patches: int) -> int:
    """Return the max number of rows of all masks of an image, those of the result and its copy."""
    from setok_kernels import ClusterConfig
    from setokim.visualization.functions import DPCConfig

    if isinstance(config, ClusterConfig):
        return config.max_clusters + 1 + min(config.max_clusters, patches) + 1
    bound = config.num_clusters if isinstance(config, DPCConfig) else None
    # Hard clusterings return labels; without a bound every patch may be a cluster.
    return min(bound or patches, patches) + 1


def _check_animation(kind: str | None, function: str) -> None:
    from PIL import features

    if kind is None:
        return
    if function != "cluster_tokens":
        expected = "the function cluster_tokens, whose steps it shows"
        raise UsageError(f"--animate: expected {expected}, got {function}")
    if kind == "webp" and not features.check("webp"):
        raise UsageError("--animate: expected a format that this Pillow writes, got webp")


def _require_extras() -> None:
    try:
        import PIL  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        raise missing_package(error, "cli") from error
