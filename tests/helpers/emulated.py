"""Kernels on the PTX emulator, in processes of their own: there triton compiles, not interprets."""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent


def emulate(module: str, *arguments, path: tuple = ()) -> subprocess.CompletedProcess:
    """Run a module of `ptxemu`.

    Args:
        module: name of the module.
        arguments: of its command line.
        path: folders whose packages come before the installed ones.
    """
    foreign = ("TRITON", "PYTEST", "COV", "PYTHON")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    environment["PYTHONPATH"] = os.pathsep.join(str(p) for p in (*path, TESTS))
    environment.setdefault("PTXEMU_CACHE", str(ROOT / "build"))
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.run(
        [sys.executable, "-m", f"ptxemu.{module}", *(str(a) for a in arguments)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


def check(arch: int, *names: str) -> None:
    """Cases of these names are right and nothing is found in them."""
    child = emulate("check", "--arch", arch, "--only", *names)
    assert child.returncode == 0, f"exit {child.returncode}\n{child.stdout}"
    clean = re.findall(r"(?m)^ok   (.*)  \[", child.stdout)
    missing = [name for name in names if not any(name in case for case in clean)]
    assert not missing, f"no case is named {missing}"
