"""Kernels of csrc/cuda on the emulator: nvcc compiles them, and the PTX runs in place of Triton's.

Imported after `driver.prepare()`.
"""

import contextlib
import functools
import importlib.util
import os
import re
import sys
from pathlib import Path
from unittest import mock

from ptxemu.build import cache_folder
from ptxemu.parser import entries

ROOT = Path(__file__).parents[2]


@functools.cache
def build_script():
    """Return csrc/build.py as a module."""
    spec = importlib.util.spec_from_file_location("setok_build", ROOT / "csrc/build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def kernels(arch: int) -> dict[str, str]:
    """Compile the kernels; return the PTX of each by its name."""
    made = build_script().build_cuda(cache_folder() / f"cuda-{os.getpid()}")
    text = next(path for path in made if path.name == f"scope_sm_{arch}.ptx").read_text()
    for path in made:
        path.unlink()
    made[0].parent.rmdir()
    return entries(text)


@contextlib.contextmanager
def in_place_of_triton(emulator, edit=None):
    """Launch the kernels as `SETOK_CUDA=1` does, on an emulator.

    Args:
        emulator: emulator of the Triton kernels, which run besides.
        edit: function that changes the PTX of a kernel, for tests of the checks.
    """
    from setok_kernels import _cuda_kernels, dispatch

    def launch(kernel, blocks, threads, structure, values, device):
        ptx = kernels(emulator.arch)[kernel]
        ptx = edit(ptx) if edit else ptx
        emulator.execute_struct(ptx, blocks, threads, structure, values)

    with (
        mock.patch.dict(os.environ, SETOK_CUDA="1"),
        mock.patch.object(_cuda_kernels, "launch", launch),
        mock.patch.object(dispatch, "_why_no_cuda", lambda device: None),
    ):
        yield


_BARRIER = re.compile(r"\t(?:bar|barrier)\.sync\s+0;")


def barriers(arch: int, kernel: str) -> list[str]:
    """Return for each barrier of a kernel, in the text's order, whether it is in the step loop."""
    text = kernels(arch)[kernel]
    begin, end = step_loop(text)
    places = [found.start() for found in _BARRIER.finditer(text)]
    return ["in the step loop" if begin <= at < end else "before it" for at in places]


def without(text: str, number: int) -> str:
    """Return the PTX of a kernel without one of its barriers."""
    found = list(_BARRIER.finditer(text))[number]
    return text[: found.start()] + text[found.end() :]


def step_loop(text: str) -> tuple[int, int]:
    """Return the span of the step loop in a kernel's PTX: the one loop with a barrier."""
    labels = {found[1]: found.start() for found in re.finditer(r"(?m)^(\$\w+):", text)}
    jumps = re.finditer(r"\bbra(?:\.uni)?\s+(\$\w+);", text)
    back = [(labels[j[1]], j.end()) for j in jumps if labels[j[1]] < j.start()]
    held = [span for span in back if _BARRIER.search(text, *span)]
    if not held:
        raise ValueError("no loop has a barrier")
    return min(begin for begin, _ in held), max(end for _, end in held)
