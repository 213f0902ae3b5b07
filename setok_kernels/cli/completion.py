"""`setok completion`: completion of commands and options in a shell, by argcomplete."""

from __future__ import annotations

import argparse
import os
import sys

from setok_cli.errors import missing_package

_SHELLS = ("bash", "zsh", "fish")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `setok`."""
    parser = commands.add_parser(
        "completion",
        help="print what makes a shell complete commands and options",
        description='Prints a script for the shell: eval "$(setok completion bash)" in ~/.bashrc, '
        "the same with zsh in ~/.zshrc, setok completion fish | source in "
        "~/.config/fish/config.fish.",
    )
    parser.add_argument("shell", choices=_SHELLS, metavar="SHELL", help=", ".join(_SHELLS))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script; return 0.

    Raises:
        UsageError: argcomplete is not installed.
    """
    try:
        import argcomplete
    except ImportError as error:
        raise missing_package(error, "completion") from error
    print(argcomplete.shellcode(["setok"], shell=arguments.shell))
    return 0


def answer_shell(parser: argparse.ArgumentParser) -> None:
    """Print completions and exit if the shell requests them; no command runs then."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        import argcomplete
    except ImportError as error:
        # The request comes from the script of another environment.
        sys.exit(f"setok: {missing_package(error, 'completion')}")
    argcomplete.autocomplete(parser)
