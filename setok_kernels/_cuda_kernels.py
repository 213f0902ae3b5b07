"""CUDA kernels of csrc/cuda, which `SETOK_CUDA=1` puts in place of the Triton kernel.

They are data files of the package, made where nvcc was found at build time. The driver's library is
looked up at run time; nothing links with CUDA.
"""

import ctypes
import functools
import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from setok_kernels import _native

FOLDER = Path(__file__).with_name("_cuda")
# Written by setup.py in place of the kernels.
_FAILURE_NOTE = "_build_failed.txt"
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_SUCCESS = 0


def requested() -> bool:
    """Return True for `SETOK_CUDA=1`, False for 0 or an unset variable.

    Raises:
        ValueError: the variable has another value.
    """
    value = os.environ.get("SETOK_CUDA", "0")
    if value not in ("0", "1"):
        raise ValueError(f"SETOK_CUDA: expected one of 0, 1, got {value!r}")
    return value == "1"


def why_not(capability: tuple[int, int]) -> str | None:
    """Return None if the kernels can run, else the reason and the remedy in one line.

    Args:
        capability: compute capability of the device.
    """
    reason = why_missing()
    if reason is None and capability < (8, 0):
        number = ".".join(map(str, capability))
        reason = f"the CUDA kernels need compute capability 8.0 or newer, got {number}"
    if reason is None:
        reason = _why_no_driver()
    return None if reason is None else f"SETOK_CUDA=1: {reason}; or unset SETOK_CUDA"


def why_missing() -> str | None:
    """Return None if the package has the kernels, else the reason and the remedy in one line."""
    if image_file((8, 0)).exists():
        return None
    note = FOLDER / _FAILURE_NOTE
    if note.exists():
        text = " ".join(note.read_text().split())
        cause = f"could not be built when the package was installed ({text})"
    else:
        cause = f"were not found in {FOLDER}"
    return f"the CUDA kernels {cause}; {_native.rebuild('nvcc')}"


def digest() -> str:
    """Return a digest of the kernels in use, empty without `SETOK_CUDA=1`."""
    if not requested() or why_missing() is not None:
        return ""
    parts = [path.read_bytes() for path in sorted(FOLDER.iterdir())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def image_file(capability: tuple[int, int]) -> Path:
    """Return the file that the driver loads on a device: machine code, or PTX on newer ones."""
    major = capability[0]
    return FOLDER / {8: "scope_sm_80.cubin", 9: "scope_sm_90.cubin"}.get(major, "scope_sm_90.ptx")


def launch(
    kernel: str,
    blocks: int,
    threads: int,
    structure: type[ctypes.Structure],
    values: Mapping,
    device: torch.device,
) -> None:
    """Launch a kernel on torch's current stream of the current device.

    Args:
        kernel: name of the kernel.
        blocks: number of thread blocks.
        threads: number of threads of a block.
        structure: type of the kernel's one argument.
        values: fields of the argument: numbers, tensors of the device, or None for a null pointer.
        device: device of the tensors.

    Raises:
        RuntimeError: the kernels are missing, or the driver refuses the module or the launch.
    """
    capability = torch.cuda.get_device_capability(device)
    reason = why_not(capability)
    if reason is not None:
        raise RuntimeError(reason)
    function = _function(kernel, capability, _context())
    fields = {
        name: value.data_ptr() if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }
    argument = structure(**fields)
    pointers = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
    stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
    grid_and_block = (blocks, 1, 1, threads, 1, 1)
    # No dynamic shared memory; the driver copies the argument before it returns.
    _call("cuLaunchKernel", function, *grid_and_block, 0, stream, pointers, None)


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL(_DRIVER)


@functools.cache
def _why_no_driver() -> str | None:
    try:
        _driver()
    except OSError as error:
        return (
            f"the CUDA driver's library {_DRIVER} does not load ({' '.join(str(error).split())}); "
            "install the NVIDIA driver"
        )
    return None


def _context() -> int:
    """Return the handle of the current context, that of torch after its first operation."""
    context = ctypes.c_void_p()
    _call("cuCtxGetCurrent", ctypes.byref(context))
    if not context.value:
        raise RuntimeError(
            "SETOK_CUDA=1: expected a current CUDA context; call torch.cuda.init() before"
        )
    return context.value


@functools.cache
def _module(capability: tuple[int, int], context: int) -> ctypes.c_void_p:
    """Load the kernels into the current context; a module belongs to its context."""
    path = image_file(capability)
    # PTX is a string that ends with a zero byte; machine code has its size inside.
    module, code = ctypes.c_void_p(), ctypes.create_string_buffer(path.read_bytes())
    try:
        _call("cuModuleLoadData", ctypes.byref(module), code)
    except RuntimeError as error:
        supported = ctypes.c_int()
        _call("cuDriverGetVersion", ctypes.byref(supported))
        version = f"{supported.value // 1000}.{supported.value % 1000 // 10}"
        raise RuntimeError(
            f"{error}: the driver, for CUDA {version}, does not load {path.name}; update the "
            "driver, install again with the nvcc of its CUDA version, or unset SETOK_CUDA"
        ) from None
    return module


@functools.cache
def _function(kernel: str, capability: tuple[int, int], context: int) -> ctypes.c_void_p:
    function = ctypes.c_void_p()
    module = _module(capability, context)
    _call("cuModuleGetFunction", ctypes.byref(function), module, kernel.encode())
    return function


def _call(name: str, *arguments) -> None:
    """Call a function of the driver.

    Raises:
        RuntimeError: it returns an error.
    """
    status = getattr(_driver(), name)(*arguments)
    if status != _SUCCESS:
        text = ctypes.c_char_p()
        _driver().cuGetErrorName(status, ctypes.byref(text))
        error = (text.value or b"unknown").decode()
        raise RuntimeError(f"SETOK_CUDA=1: {name} returned {status} ({error})")
