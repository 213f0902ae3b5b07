"""Lazy access to the compiled module `setok_kernels._C`.

Importing never builds anything. A failed load is remembered and every later `load` raises the same
reason with the remedy.
"""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from types import ModuleType

_NAME = "setok_kernels._C"
# As in csrc/isa.cpp.
_INSTRUCTION_SETS = ("avx512", "avx2", "baseline")
_REMEDY = "run `pip install --no-build-isolation -e .` with a C++17 compiler on PATH"
# Left by setup.py when it installed the package without the module.
_FAILURE_NOTE = Path(__file__).with_name("_C_build_failed.txt")


def load() -> ModuleType:
    """Returns the compiled module.

    Raises:
        ImportError: It is not there or does not load; the message says why and what to do.
    """
    module, reason = _attempt()
    if module is None:
        raise ImportError(reason)
    return module


def check_cpu_capability() -> None:
    """Check the instruction set that `$SETOK_CPU_CAPABILITY` limits the compiled kernels to.

    Only the kernels know whether this processor has it: otherwise their first call raises an error
    of the same kind.

    Raises:
        ValueError: There is no such set.
    """
    value = os.environ.get("SETOK_CPU_CAPABILITY", "")
    if value and value not in _INSTRUCTION_SETS:
        sets = ", ".join(_INSTRUCTION_SETS)
        raise ValueError(f"SETOK_CPU_CAPABILITY: expected one of {sets}, got {value!r}")


def why_missing() -> str | None:
    """Returns None when the compiled module loads, else the reason and the remedy in one line."""
    return _attempt()[1]


@functools.cache
def _attempt() -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module(_NAME), None
    except ModuleNotFoundError:
        if _FAILURE_NOTE.exists():
            cause = f"could not be built when the package was installed ({_read_note()})"
        else:
            cause = f"was not found in {Path(__file__).parent}"
    except ImportError as error:
        cause = f"was found but does not load ({' '.join(str(error).split())})"
    return None, f"{_NAME} {cause}; {_REMEDY}"


def _read_note() -> str:
    return " ".join(_FAILURE_NOTE.read_text().split())
