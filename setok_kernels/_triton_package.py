"""Tell the package triton from the folder triton/ of this repository.

Python takes any folder on its path for a package without files of its own (a namespace package).
Started in the root of the repository, a Python without triton would therefore find one there, and
torch.compile would use it: "module 'triton' has no attribute 'language'".
"""

import importlib.util
import sys
from typing import Literal


def is_installed() -> bool:
    """Whether `import triton` gives the package."""
    return _found() == "package"


def hide_folder() -> None:
    """Let `import triton` fail where it would give a folder, for torch and all others that ask.

    None is Python's own way to say that a module is not there. torch asks when it compiles for the
    first time, and remembers the answer.
    """
    if _found() == "folder":
        # sys.modules takes None, though its type in typeshed does not say so.
        sys.modules["triton"] = None  # type: ignore[assignment]


def _found() -> Literal["package", "folder"] | None:
    try:
        spec = importlib.util.find_spec("triton")
    except ValueError:
        # A module without a spec is one that somebody has put there on purpose.
        return "package"
    if spec is None:
        return None
    return "folder" if spec.origin is None else "package"
