"""`setok explore`: a page in the browser, where images are clustered as settings change."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from setok_cli.errors import UsageError, missing_package
from setok_cli.options import BACKENDS, add_device_option, add_trust_option, grid_size
from setok_cli.signals import signal_of

if TYPE_CHECKING:
    from setokim.explorer.features import Features
    from setokim.explorer.reconstruction import Reconstruction


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `setok`."""
    parser = commands.add_parser(
        "explore",
        help="cluster images in the browser, as settings change",
        description="Serves a page on this machine. An image is encoded once and clustered again "
        "with each change of a setting. Without IMAGE it begins with photographs of scikit-image.",
    )
    parser.add_argument(
        "images", nargs="*", type=Path, metavar="IMAGE", help="images to choose from"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--encoder",
        default="patch-statistics",
        metavar="NAME|DIR",
        help="patch-statistics (built in, the default), or a vision model on the Hugging Face "
        "hub or in a folder",
    )
    source.add_argument(
        "--model",
        metavar="DIR",
        help="model that `setok train` wrote, or small-world: its encoder, and reconstructions "
        "from the tokens",
    )
    parser.add_argument(
        "--grid",
        type=grid_size,
        metavar="HxW",
        help="rows and columns of patches of the encoder (default: 27x27, or the model's own)",
    )
    parser.add_argument(
        "--port", type=int, metavar="N", help="port (default: the first free one from 7860 on)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen at (default: %(default)s, for this machine only)",
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    add_device_option(parser, "the encoder and the clustering")
    add_trust_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until an interruption.

    Raises:
        UsageError: an argument does not fit, or the port cannot be used.
    """
    try:
        from setok_kernels.extras import from_extra

        with from_extra("explore"):
            import gradio  # noqa: F401
            import PIL  # noqa: F401
    except ImportError as error:
        raise missing_package(error, "explore") from error
    from setokim.explorer.server import LOOPBACK, free_port, serve

    try:
        # Before the model, which may take long to load.
        free_port(arguments.host, arguments.port)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    features = make_features(arguments)
    try:
        with serve(features, arguments.host, arguments.port) as address:
            print(f"The explorer is at {address} until Ctrl+C", flush=True)
            if arguments.host not in (LOOPBACK, "localhost", "::1"):
                print(
                    "setok explore: anyone who reaches this address can use it and see the images "
                    "of the command line",
                    file=sys.stderr,
                    flush=True,
                )
            threading.Event().wait()
    except ValueError as error:
        # Another process has taken the port since.
        raise UsageError(f"--{error}") from error
    except KeyboardInterrupt as stop:
        if signal_of(stop) is not signal.SIGINT:
            raise
        # The way to end a server, not a failure.
        print()
    return 0


def make_features(arguments: argparse.Namespace) -> Features:
    """Build what the page works with from the arguments of the command.

    Raises:
        UsageError: an image cannot be read, or a model cannot be used.
    """
    from setok_kernels import ClusterConfig
    from setokim.cli.cluster import make_method
    from setokim.data.image_processing import UnreadableImageError
    from setokim.explorer.features import Features
    from setokim.explorer.images import Images

    images = Images(arguments.images)
    try:
        for key in images.at_hand[: len(arguments.images)]:
            images.load(key)
    except UnreadableImageError as error:
        raise UsageError(str(error)) from error
    if arguments.model is not None:
        if arguments.grid is not None:
            raise UsageError("--grid: expected none with --model, whose encoder has its own")
        reconstruction, whole = _load_reconstruction(arguments)
        return Features(
            images,
            reconstruction.model.encoder,
            arguments.model,
            arguments.backend,
            arguments.device,
            reconstruction,
            whole=whole,
        )
    method = make_method(
        arguments.encoder,
        arguments.grid,
        ClusterConfig(),
        arguments.backend,
        arguments.device,
        arguments.trust_remote_code,
    )
    return Features(
        images,
        method.encoder,
        arguments.encoder,
        arguments.backend,
        arguments.device,
        grid=arguments.grid,
    )


def _load_reconstruction(arguments: argparse.Namespace) -> tuple[Reconstruction, bool]:
    """Load the tokenizer of `--model`; also return whether its folder has a whole SeTokim model."""
    from setokim.cli._inference import is_tokenizer, load_model, load_tokenizer, model_folder
    from setokim.explorer.reconstruction import Reconstruction
    from setokim.utils.pretrained import is_embedded

    folder = model_folder(arguments)
    is_whole = not is_tokenizer(folder)
    if is_whole:
        model = load_model(folder, arguments.device, arguments.trust_remote_code)[0].setok
    else:
        model = load_tokenizer(folder, arguments.device)
    try:
        # `SetokModel.from_pretrained` knows the tokenizers of embedded models by name.
        return Reconstruction(model), is_whole and not is_embedded(arguments.model)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
