"""`setok cluster`: pictures in, cluster maps and their data out."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from setok_cli.device import usable_device
from setok_cli.errors import UsageError, missing_package
from setok_cli.options import BACKENDS, add_config_options, add_trust_option, read_config

if TYPE_CHECKING:
    from rich.table import Table

    from setok_kernels.config import ClusterConfig
    from setokim.cli.pictures import Method, PictureClusters
    from setokim.data.image_processing import UnreadableImageError


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
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
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
    add_trust_option(parser)
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Clusters the pictures; returns 1 if one could not be read, else 0.

    Raises:
        UsageError: There is nothing to do, or it cannot be done as asked.
    """
    _require_extras()
    from setokim.cli.names import RESULT_MARK
    from setokim.data.image_processing import IMAGE_SUFFIXES, scan_images
    from setokim.utils.file_names import printable_name
    from setokim.utils.folder_lock import FolderInUseError, locked

    config = read_config(arguments)
    files, refused = scan_images(arguments.inputs, arguments.recursive, f"{RESULT_MARK}.png")
    if not files and not refused:
        looked_for = " ".join(sorted(IMAGE_SUFFIXES))
        inputs = ", ".join(map(printable_name, arguments.inputs))
        raise UsageError(f"no pictures found in {inputs} (looked for {looked_for})")
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
        failures = _process(files, refused, arguments.out, method, arguments.batch_size)
    return 1 if failures else 0


def _process(
    files: Sequence[Path],
    refused: Sequence[UnreadableImageError],
    out: Path,
    method: Method,
    batch_size: int,
) -> list[UnreadableImageError]:
    """Clusters the files and reports, also what was done before something ended it.

    Returns:
        Why images could not be read, `refused` among them.
    """
    from rich.console import Console
    from rich.progress import track

    from setokim.cli.pictures import process_files
    from setokim.data.image_processing import UnreadableImageError

    rows, failures = [], [*refused]
    results = process_files(files, out, method, batch_size)
    errors = Console(stderr=True)
    try:
        for result in track(results, "Clustering", total=len(files), console=errors):
            if isinstance(result, UnreadableImageError):
                failures.append(result)
            else:
                rows.append(summarise(result))
    except BaseException:
        # What is done is kept and told; that the output is gone too must not hide the reason.
        with contextlib.suppress(OSError):
            _report(rows, failures, out)
        raise
    _report(rows, failures, out)
    return failures


def _report(
    rows: Sequence[tuple[str, ...]], failures: Sequence[UnreadableImageError], out: Path
) -> None:
    from rich.console import Console

    from setokim.utils.file_names import printable_name

    for failure in failures:
        print(f"setok cluster: {failure}", file=sys.stderr)
    if rows:
        Console().print(summary_table(rows))
        print(f"Results are in {printable_name(out)}")


def make_method(
    encoder_name: str,
    grid: tuple[int, int] | None,
    config: ClusterConfig,
    backend: str = "auto",
    device_name: str = "cpu",
    trust_remote_code: bool = False,
) -> Method:
    """Builds the encoder and checks that the device and the backend can be used.

    Raises:
        UsageError: One of them cannot.
    """
    from setok_kernels.dispatch import select_backend
    from setokim import build_encoder
    from setokim.cli.pictures import Method

    device = usable_device(device_name)
    try:
        select_backend(backend, device)
        encoder = build_encoder(encoder_name, grid, trust_remote_code).to(device)
    except ImportError as error:
        raise missing_package(error, "cli,model", f"--encoder {encoder_name} ") from error
    except (RuntimeError, ValueError) as error:
        raise UsageError(str(error)) from error
    return Method(encoder, encoder_name, config, backend, device_name)


def summarise(picture: PictureClusters) -> tuple[str, ...]:
    """One row of the table, without keeping the picture itself in memory."""
    from setokim.utils.file_names import printable_name

    return (
        printable_name(picture.name),
        str(picture.tokens),
        str(picture.distinct_labels),
        f"{picture.residual_share:.1%}",
        f"{picture.encode_seconds * 1e3:.1f}",
        f"{picture.cluster_seconds * 1e3:.1f}",
    )


def summary_table(rows: Sequence[tuple[str, ...]]) -> Table:
    """Lays out the rows of `summarise`."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("picture", overflow="fold")
    for heading in ("tokens", "labels", "residual", "encode ms", "cluster ms"):
        table.add_column(heading, justify="right")
    for row in rows:
        # As text: in a string, rich would take "[draft]" for markup.
        table.add_row(*map(Text, row))
    return table


def _require_memory(method: Method, batch_size: int) -> None:
    """Refuses a grid whose tensors alone exceed the free memory, before they are allocated."""
    from setokim.utils.host_memory import require_memory

    rows, columns = method.encoder.grid
    pixels = 3 * math.prod(method.encoder.pixel_size)
    per_patch = method.encoder.feature_dim + method.config.max_clusters + 1
    needed = max(
        # While the last image of a batch is scaled: the batch, its bytes, two copies in float64.
        pixels * (4 * batch_size + 17),
        # While the batch is encoded: its pixels and a copy. Afterwards: features and masks.
        pixels * 8 * batch_size,
        rows * columns * per_patch * 4 * batch_size,
    )
    try:
        require_memory(needed, f"--grid {rows}x{columns}")
    except ValueError as error:
        raise UsageError(f"{error}; --batch-size is {batch_size}") from error


def _require_extras() -> None:
    try:
        import PIL  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        raise missing_package(error, "cli") from error


def _grid(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.lower())
    if not found:
        raise argparse.ArgumentTypeError(f"expected ROWSxCOLUMNS such as 27x27, got {text!r}")
    return int(found[1]), int(found[2])


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)
