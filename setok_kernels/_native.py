"""Load the compiled CPU kernels, or report why they are missing.

The kernels are one shared library of operators for every Python and every torch from 2.11 on.
Importing never builds anything. A failed load is cached: each later `load` raises the same reason
with the remedy.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
import shlex
import sys
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch

_SUFFIXES = {"darwin": ".dylib", "win32": ".dll"}
_LIBRARY = Path(__file__).with_name(f"libsetok_kernels{_SUFFIXES.get(sys.platform, '.so')}")
# Written by setup.py when it installs the package without the library.
_FAILURE_NOTE = Path(__file__).with_name("_build_failed.txt")


def load() -> Path:
    """Load the operators once and return the path of their library.

    Raises:
        ImportError: the library is missing or does not load; the message has cause and remedy.
    """
    reason = why_missing()
    if reason is not None:
        raise ImportError(reason)
    return _LIBRARY


@functools.cache
def why_missing() -> str | None:
    """Return None if the operators are loaded, else the reason and the remedy in one line."""
    if not _LIBRARY.exists():
        if _FAILURE_NOTE.exists():
            note = " ".join(_FAILURE_NOTE.read_text().split())
            cause = f"could not be built when the package was installed ({note})"
        else:
            cause = f"was not found in {_LIBRARY.parent}"
    else:
        try:
            torch.ops.load_library(_LIBRARY)
        except OSError as error:
            cause = f"was found but does not load ({' '.join(str(error).split())})"
        else:
            return None
    return f"{_LIBRARY.name} {cause}; {remedy()}"


def internals() -> ModuleType | None:
    """Return the module of diagnostics and kernel internals, or None in a wheel without it."""
    try:
        return importlib.import_module("._internals", __package__)
    except ModuleNotFoundError:
        return None


def remedy() -> str:
    """Return how to get the compiled CPU kernels."""
    return f"{rebuild('a C++17 compiler')}, or install a wheel for this platform"


def rebuild(tool: str) -> str:
    """Return the command that reinstalls the package with its kernels from the same source.

    Args:
        tool: name of the compiler that they need.
    """
    try:
        origin = importlib.metadata.distribution("setok-kernels").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        origin = None
    source = {} if origin is None else json.loads(origin)
    url = source.get("url", "")
    if url.endswith(".whl"):
        # Reinstalling the same wheel would not add the kernels.
        again = f"build {shlex.quote(_local(url))} again where {tool} is on PATH"
    else:
        again = (
            f"put {tool} on PATH and run `pip install --force-reinstall --no-deps "
            f"--no-cache-dir {_requirement(source)}`"
        )
    return again


def _requirement(source: dict) -> str:
    """Return pip's requirement for a `direct_url.json` (PEP 610), which is empty for an index."""
    if not source:
        return "--no-binary setok-kernels setok-kernels"
    if version := source.get("vcs_info"):
        return shlex.quote(f"{version['vcs']}+{source['url']}@{version['commit_id']}")
    flag = "-e " if source.get("dir_info", {}).get("editable") else ""
    return flag + shlex.quote(_local(source["url"]))


def _local(url: str) -> str:
    """Return the path of a `file:` URL; return any other URL unchanged."""
    return url2pathname(urlsplit(url).path) if url.startswith("file:") else url
