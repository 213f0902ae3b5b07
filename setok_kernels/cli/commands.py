"""The commands of `setok`: two of this package, all others by entry points.

A package adds a command by an entry point of the group `setok.commands`: the command's name, and a
function such as `setokim.cli.train:add_parser` that adds its parser to argparse's subparsers. Its
module is imported for each command line, so it imports nothing heavy until the command runs.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import (
    EntryPoint,
    PackageNotFoundError,
    distribution,
    distributions,
    entry_points,
)

from setok_cli import completion, doctor
from setok_cli.errors import UsageError, one_line

GROUP = "setok.commands"
DISTRIBUTION = "setok-kernels"
# The order of `--help`. Commands of other distributions follow by name.
ORDER = (
    "cluster",
    "explore",
    "tokenize",
    "compress",
    "train",
    "plan",
    "eval",
    "score",
    "compare",
    "chat",
    "generate",
    "edit",
    "segment",
    "bench",
    "doctor",
    "completion",
)
_OWN = {"doctor": doctor.add_parser, "completion": completion.add_parser}


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add all commands; one that cannot be imported is listed and raises the reason when it runs.

    Args:
        commands: subparsers of `setok`.
    """
    entries = _find_entries()
    for name in (*ORDER, *sorted(entries.keys() - set(ORDER))):
        if name in _OWN:
            _OWN[name](commands)
        elif name in entries:
            _add_entry(commands, entries[name])
        else:
            reason = "the metadata of the installed package is older than its code"
            _add_unusable(commands, name, f"is not registered: {reason}; {_remedy(DISTRIBUTION)}")


def _find_entries() -> dict[str, EntryPoint]:
    """Return the entry points by name; of several with one name, that of this distribution."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = found.setdefault(entry.name, entry)
        if other is entry:
            continue
        ignored = entry
        if _origin(entry) == DISTRIBUTION:
            found[entry.name], ignored = entry, other
        print(f"setok: ignores {entry.name!r} of {_origin(ignored)}", file=sys.stderr)
    # Metadata of an older build in the current folder hides that of the installation.
    for installed in distributions(name=DISTRIBUTION):
        for entry in installed.entry_points.select(group=GROUP):
            found.setdefault(entry.name, entry)
    return found


def _add_entry(commands: argparse._SubParsersAction, entry: EntryPoint) -> None:
    try:
        add_parser = entry.load()
    # With any error in a module, the other commands still work.
    except Exception as error:
        reason = f"cannot be imported: {type(error).__name__}: {one_line(error)}"
        _add_unusable(commands, entry.name, f"{reason}; {_remedy(_origin(entry))}")
    else:
        add_parser(commands)


def _add_unusable(commands: argparse._SubParsersAction, name: str, reason: str) -> None:
    """Add a command that takes any arguments, `--help` too, and raises the reason."""
    parser = commands.add_parser(
        name,
        help=f"unusable in this installation, as `setok {name}` explains",
        add_help=False,
        # No argument begins with it, so that none is parsed as an option.
        prefix_chars="\0",
    )
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)

    def run(_: argparse.Namespace) -> int:
        raise UsageError(reason)

    parser.set_defaults(run=run)


def _origin(entry: EntryPoint) -> str:
    return "an unknown package" if entry.dist is None else entry.dist.name


def _remedy(name: str) -> str:
    """Return the command that installs a distribution again from its origin."""
    import json

    try:
        # PEP 610; an installation from an index has none.
        source = json.loads(distribution(name).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return f"install {name}"
    if version := source.get("vcs_info"):
        requirement = f"{version['vcs']}+{source['url']}@{version['commit_id']}"
    else:
        editable = source.get("dir_info", {}).get("editable")
        requirement = ("-e " if editable else "") + source.get("url", name)
    return f"pip install --force-reinstall --no-deps {requirement}"
