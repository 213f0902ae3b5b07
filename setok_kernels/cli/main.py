"""Entry point of the console script `setok`: parses the command line and runs one command.

Heavy packages, torch included, are imported only where a command needs them: `--help` is quick,
and like `setok doctor` it works in an incomplete installation.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence

from setok_cli.commands import add_commands
from setok_cli.completion import answer_shell
from setok_cli.errors import UsageError, machine_failure
from setok_cli.signals import signal_of, stops_as_interrupts
from setok_cli.streams import flush_or_discard, writable_streams


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all commands."""
    parser = argparse.ArgumentParser(
        prog="setok", description="Semantic tokens from images, by exact token clustering."
    )
    parser.add_argument(
        "--version", action=_ShowVersion, nargs=0, help="show program's version number and exit"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_commands(commands)
    return parser


class _ShowVersion(argparse.Action):
    """Version action of argparse that looks the version up only when it is printed."""

    def __call__(self, parser, *_):
        from importlib.metadata import version

        print(f"setok-kernels {version('setok-kernels')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments after the program's name; None for those of the process.

    Returns:
        The exit code: 0 for success, 1 where part of the work failed, 2 where the command cannot
        run as given, 128 + the signal's number where SIGINT, SIGTERM or SIGHUP stopped it.
    """
    with writable_streams():
        parser = build_parser()
        answer_shell(parser)
        arguments = parser.parse_args(argv)
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
    """Return the exit code, and the reason where the command did not finish."""
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code, None
    except BrokenPipeError:
        # `setok doctor | head`: the reader has ended.
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
