"""`setok train`: SeTok's own training, from a YAML file."""

from __future__ import annotations

import argparse
from pathlib import Path

from setok_cli.errors import UsageError, missing_package


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `setok`."""
    parser = commands.add_parser(
        "train",
        help="train the tokenizer, or the language model that reads and draws its tokens",
        description="Trains the stage that a YAML file is for; `torchrun --nproc-per-node N -m "
        "setok_cli.main train ...` runs N processes. Writes checkpoints, pictures, "
        "losses.jsonl, model/ and metrics.json. Ctrl-C, SIGTERM and SIGHUP end it after the step "
        "in which they arrive, with a checkpoint; a second one ends it at once.",
    )
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML settings")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where results go")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest whole checkpoint in DIR"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings in place of the file's"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Trains; returns 0.

    Raises:
        UsageError: the settings do not fit, a file cannot be read or written, another run writes
            into the folder, too many samples are broken, a loss is not finite, or a package is not
            installed.
    """
    try:
        from setokim.data import TooManyBrokenError
        from setokim.training.settings import load_settings
        from setokim.training.trainer import NotFiniteError, Trainer
        from setokim.utils.distributed import ElsewhereError
        from setokim.utils.folder_lock import FolderInUseError

        settings = load_settings(arguments.config, arguments.overrides)
        # A stage imports what it alone needs.
        trainer = Trainer(settings, arguments.out, arguments.resume)
    except ImportError as error:
        raise missing_package(error, "cli,model,train") from error
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    try:
        metrics = trainer.train()
    except ImportError as error:
        # Of a reader of data, say.
        raise missing_package(error) from error
    except (
        OSError,
        FolderInUseError,
        ElsewhereError,
        NotFiniteError,
        TooManyBrokenError,
    ) as error:
        raise UsageError(str(error)) from error
    if trainer.main:
        for name, value in metrics.items():
            print(f"{name:<26} {value:.4g}" if isinstance(value, float) else f"{name:<26} {value}")
        print(f"Model, pictures and metrics are in {arguments.out}")
    return 0
