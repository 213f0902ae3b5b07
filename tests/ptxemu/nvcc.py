"""Kernels of csrc/cuda on the emulator: nvcc compiles them, and the PTX runs in place of Triton's.

Imported after `driver.prepare()`.
"""

import contextlib
import functools
import importlib.util
import os
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
