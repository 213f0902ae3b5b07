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
_JUMP = re.compile(r"\bbra(?:\.uni)?\s+(\$\w+);")


def barriers(arch: int, kernel: str) -> list[str]:
    """Return for each barrier of a kernel, in the text's order, whether it is in the step loop."""
    lines = kernels(arch)[kernel].splitlines()
    places = [number for number, line in enumerate(lines) if _BARRIER.search(line)]
    return ["in the step loop" if loop_of(lines, at) else "in no loop" for at in places]


def without(text: str, number: int) -> str:
    """Return the PTX of a kernel without one of its barriers."""
    found = list(_BARRIER.finditer(text))[number]
    return text[: found.start()] + text[found.end() :]


def step_loops(text: str) -> list[list[str]]:
    """Return the lines of the loop around each barrier that is in a loop."""
    lines = text.splitlines()
    loops = [loop_of(lines, n) for n, line in enumerate(lines) if _BARRIER.search(line)]
    return [[lines[n] for n in sorted(loop)] for loop in loops if loop]


def loop_of(lines: list[str], at: int) -> set[int]:
    """Return the numbers of the lines that line `at` leads to and that lead back to it."""
    labels = {line[:-1]: number for number, line in enumerate(lines) if re.match(r"\$\w+:$", line)}
    after = {number: _successors(line, number, labels) for number, line in enumerate(lines)}
    before = {number: [] for number in after}
    for number, following in after.items():
        for other in following:
            before.setdefault(other, []).append(number)
    return _reached(at, after) & _reached(at, before)


def _successors(line: str, number: int, labels: dict[str, int]) -> list[int]:
    jump, guarded = _JUMP.search(line), line.lstrip().startswith("@")
    ends = jump or re.search(r"\bret;", line)
    found = [labels[jump[1]]] if jump else []
    return found if ends and not guarded else [*found, number + 1]


def _reached(at: int, edges: dict[int, list[int]]) -> set[int]:
    found, left = set(), list(edges.get(at, []))
    while left:
        number = left.pop()
        if number not in found:
            found.add(number)
            left += edges.get(number, [])
    return found
