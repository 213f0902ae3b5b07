"""`setok train`: training of a stage, from a YAML file."""

from __future__ import annotations

import argparse
from pathlib import Path

from setok_cli.errors import UsageError, missing_package
from setok_cli.output import add_json_option, print_json, print_to_stderr
from setokim.cli._settings import add_settings_options, overrides_of, show_keys


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `setok`."""
    parser = commands.add_parser(
        "train",
        help="train the tokenizer, or the language model that reads and generates its tokens",
        description="Trains the stage of a YAML file; `torchrun --nproc-per-node N -m "
        "setok_cli.main train ...` runs N processes. Writes checkpoints, images, losses.jsonl, "
        "model/ and metrics.json. Ctrl-C, SIGTERM and SIGHUP end it after the current step, with "
        "a checkpoint; a second one ends it at once.",
    )
    out = parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder of results"
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume from the newest whole checkpoint in DIR"
    )
    add_settings_options(parser, out)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train; return 0.

    Raises:
        UsageError: the settings do not fit, a file cannot be read or written, another run writes
            into the folder, too many samples are broken, a loss is not finite, or a package is not
            installed.
    """
    if arguments.help_keys:
        return show_keys(arguments, stages=(1, 2, 3))
    try:
        from setokim.data import TooManyBrokenError
        from setokim.training.settings import load_settings
        from setokim.training.trainer import NotFiniteError, Trainer
        from setokim.utils.distributed import OtherRankError
        from setokim.utils.folder_lock import FolderInUseError

        settings = load_settings(arguments.config, overrides_of(arguments))
        # Each stage imports its own packages.
        trainer = Trainer(settings, arguments.out, arguments.resume)
    except ImportError as error:
        raise missing_package(error, "cli,model,train") from error
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    try:
        with print_to_stderr(arguments.json):
            metrics = trainer.train()
    except ImportError as error:
        # Such as the package of a reader.
        raise missing_package(error) from error
    except (
        OSError,
        FolderInUseError,
        OtherRankError,
        NotFiniteError,
        TooManyBrokenError,
    ) as error:
        raise UsageError(str(error)) from error
    if not trainer.main:
        return 0
    if arguments.json:
        print_json({"metrics": metrics, "out": str(arguments.out)})
        return 0
    for name, value in metrics.items():
        print(f"{name:<26} {value:.4g}" if isinstance(value, float) else f"{name:<26} {value}")
    print(f"Model, images and metrics are in {arguments.out}")
    return 0
