"""Distinguish the package triton from the folder triton/ of this repository.

Python imports any folder on its path as a namespace package. In the root of the repository, a
Python without triton would import our folder under that name, and torch.compile would fail with
"module 'triton' has no attribute 'language'".
"""

import importlib.util
import sys
from typing import Literal


def is_installed() -> bool:
    """Return True if `import triton` finds the package."""
    return _found() == "package"


def hide_folder() -> None:
    """Make `import triton` fail in this process if it would find the folder.

    None in `sys.modules` marks a missing module. torch looks for triton in its first compilation
    and caches the result.
    """
    if _found() == "folder":
        # sys.modules takes None, though its type in typeshed does not say so.
        sys.modules["triton"] = None  # type: ignore[assignment]


def _found() -> Literal["package", "folder"] | None:
    try:
        spec = importlib.util.find_spec("triton")
    except ValueError:
        # A module without a spec was placed in sys.modules on purpose.
        return "package"
    if spec is None:
        return None
    return "folder" if spec.origin is None else "package"
