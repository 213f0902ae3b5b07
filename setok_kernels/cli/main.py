"""Entry point of the console script `setok`: parses the command line and runs one command.

Nothing heavy is imported before it is known to be needed, torch included: `--help` is there at
once, and like `setok doctor` it works in an incomplete installation.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence

from setok_cli import bench, doctor
from setok_cli.errors import UsageError, machine_failure
from setok_cli.signals import signal_of, stops_as_interrupts
from setok_cli.streams import flush_or_discard, writable_streams
from setokim.cli import chat, cluster, edit, evaluate, generate, plan, segment, train


def build_parser() -> argparse.ArgumentParser:
    """Makes the parser with all commands."""
    parser = argparse.ArgumentParser(
        prog="setok", description="Semantic tokens from pictures, by exact token clustering."
    )
    parser.add_argument(
        "--version", action=_ShowVersion, nargs=0, help="show program's version number and exit"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (cluster, train, plan, evaluate, chat, generate, edit, segment, bench, doctor):
        module.add_parser(commands)
    return parser


class _ShowVersion(argparse.Action):
    """As argparse's own, but the version is looked up only where it is asked for."""

    def __call__(self, parser, *_):
        from importlib.metadata import version

        print(f"setok-kernels {version('setok-kernels')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments after the program's name; those of the process when None.

    Returns:
        The exit code: 0 all well, 1 part of the work failed, 2 the command cannot run as given,
        128 + the signal's number when SIGINT, SIGTERM or SIGHUP stopped it.
    """
    with writable_streams():
        arguments = build_parser().parse_args(argv)
        try:
            with stops_as_interrupts():
                code, reason = _run(arguments)
        except KeyboardInterrupt as stop:
            number = signal_of(stop)
            code, reason = 128 + number, f"stopped by {number.name}"
        flush_or_discard()
        if reason is not None:
            # After SIGHUP the terminal may be gone.
            with contextlib.suppress(OSError):
                print(f"setok {arguments.command}: {reason}", file=sys.stderr)
        return code


def _run(arguments: argparse.Namespace) -> tuple[int, str | None]:
    """The exit code, and why the command did not come to its end."""
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code, None
    except BrokenPipeError:
        # `setok doctor | head`: nobody reads on.
        return 0, None
    except UsageError as error:
        return 2, str(error)
    except (OSError, MemoryError, RuntimeError) as error:
        reason = machine_failure(error)
        if reason is None:
            raise
        return 1, reason


if __name__ == "__main__":
    sys.exit(main())
