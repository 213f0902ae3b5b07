"""Selection of the backend: one predicate per backend makes the choice and the error message."""

import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd import forward_ad

from setok_kernels import _cuda_kernels, _native, _triton_package, reference
from setok_kernels._tracing import constant_in_graphs
from setok_kernels.compiled import Compiled
from setok_kernels.config import INTERPRETED, NAMESPACE, TRITON_DTYPES
from setok_kernels.verification import trust


def can_run_reference(
    device: torch.device, *dtypes: torch.dtype, raise_error: bool = False
) -> bool:
    """Return True: plain PyTorch runs on every device."""
    return True


def can_run_cpp(device: torch.device, *dtypes: torch.dtype, raise_error: bool = False) -> bool:
    """Return True if the compiled CPU kernels can run on `device`."""
    if device.type != "cpu":
        reason: str | None = f"expected CPU tensors, got {device}; use backend='reference'"
    else:
        reason = _why_no_cpp()
    return _verdict("cpp", reason, raise_error)


def can_run_triton(device: torch.device, *dtypes: torch.dtype, raise_error: bool = False) -> bool:
    """Return True if the Triton kernels can run with these dtypes on `device`.

    Triton's interpreter takes CPU tensors.

    Raises:
        ValueError: `SETOK_CUDA` is invalid.
        RuntimeError: `SETOK_CUDA=1` cannot be obeyed on a CUDA device, whatever `raise_error` says:
            backend="auto" must not drop an explicit request.
    """
    reason = _why_no_triton()
    if reason is None and not (device.type == "cpu" and _interpreted()):
        if device.type != "cuda":
            reason = f"expected CUDA tensors, got {device}; use backend='reference'"
        elif not torch.cuda.is_available():
            reason = "expected a CUDA device, but torch finds none; use backend='reference'"
    for dtype in dtypes:
        if reason is None and dtype not in TRITON_DTYPES:
            reason = f"expected float32, bfloat16 or float16, got {dtype}; use backend='reference'"
    if reason is None:
        reason = _why_no_cuda(device)
        raise_error = raise_error or (reason is not None and device.type == "cuda")
    return _verdict("triton", reason, raise_error)


def is_followed() -> bool:
    """Return True if forward-mode AD or torch.func may be active; only the reference supports them.

    In a compiled call this returns False: there the operations raise the error themselves.
    """
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


# The results below are constant in a process, so torch.compile need not trace the functions.


@constant_in_graphs
def _why_no_cpp() -> str | None:
    return _native.why_missing()


@constant_in_graphs
def _why_no_triton() -> str | None:
    if _triton_package.is_installed():
        return None
    return (
        'the package triton is not installed; pip install "setok-kernels[triton]", or use '
        "backend='reference'"
    )


@constant_in_graphs
def _why_no_cuda(device: torch.device) -> str | None:
    """Return None if `SETOK_CUDA` can be obeyed, else the reason and the remedy."""
    if not _cuda_kernels.requested():
        return None
    if device.type != "cuda":
        return "SETOK_CUDA=1: expected CUDA tensors, got Triton's interpreter; unset SETOK_CUDA"
    return _cuda_kernels.why_not(torch.cuda.get_device_capability(device))


@constant_in_graphs
def _warn_of_reference() -> None:
    """Warn once per process that the CPU kernels are missing: no fallback is silent."""
    # A separate function, because torch.compile traces through `functools.cache`.
    _warn_once()


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "setok_kernels runs on its reference backend, which is many times slower than the compiled "
        f"CPU kernels: {_why_no_cpp()}",
        RuntimeWarning,
        stacklevel=2,
    )


@constant_in_graphs
def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _verdict(name: str, reason: str | None, raise_error: bool) -> bool:
    if reason is not None and raise_error:
        raise RuntimeError(f"backend='{name}' cannot run: {reason}")
    return reason is None


def _triton_on(device: torch.device) -> Compiled:
    return Compiled("triton", INTERPRETED if device.type == "cpu" else NAMESPACE)


def _always(device: torch.device) -> bool:
    return True


def _triton_is_trusted(device: torch.device) -> bool:
    """Return True if "auto" may use the kernels: compiled, and verified on this device."""
    if device.type != "cuda" or _interpreted():
        return False
    index = torch.cuda.current_device() if device.index is None else device.index
    return _is_trusted(index)


@constant_in_graphs
def _is_trusted(index: int) -> bool:
    return trust.is_trusted(index)


@dataclass(frozen=True)
class _Backend:
    """A backend.

    Attributes:
        can_run: predicate of a device and dtypes; raises the reason on request.
        make: constructor of the implementation for a device.
        is_trusted: predicate of a device: "auto" may use the backend; called after `can_run`.
    """

    can_run: Callable[..., bool]
    make: Callable[[torch.device], object]
    is_trusted: Callable[[torch.device], bool] = _always


# In the order of preference of backend="auto": fastest first.
_BACKENDS = {
    "cpp": _Backend(can_run_cpp, lambda device: Compiled("cpp")),
    "triton": _Backend(can_run_triton, _triton_on, _triton_is_trusted),
    "reference": _Backend(can_run_reference, lambda device: reference),
}


def select_backend(name: str, device: torch.device, *dtypes: torch.dtype):
    """Return the backend for `backend=name` and tensors on `device`.

    "auto" is the reference inside torch.func transforms and forward-mode AD. On CUDA it is the
    Triton kernels, once verified on the device (`setok_kernels.verification`). The first call
    verifies them.

    Args:
        name: name of the backend, or "auto".
        device: device of the tensors.
        dtypes: dtypes of the tensors that the backend computes with.

    Raises:
        ValueError: no backend has this name, or `SETOK_VERIFY` is invalid.
        RuntimeError: the named backend cannot run here; the message has reason and remedy.
    """
    if name == "auto" and is_followed():
        return reference
    if name == "auto":
        backend = next(
            backend
            for backend in _BACKENDS.values()
            if backend.can_run(device, *dtypes) and backend.is_trusted(device)
        )
        if backend is _BACKENDS["reference"] and device.type == "cpu":
            _warn_of_reference()
    elif isinstance(name, str) and name in _BACKENDS:
        backend = _BACKENDS[name]
        backend.can_run(device, *dtypes, raise_error=True)
    else:
        raise ValueError(f"backend: expected one of auto, {', '.join(_BACKENDS)}, got {name!r}")
    return backend.make(device)


def backends() -> dict[str, str | None]:
    """Map each backend to None if it can run on this machine, else to the reason and the remedy."""
    status: dict[str, str | None] = {}
    for name, backend in _BACKENDS.items():
        device = torch.device("cuda" if name == "triton" else "cpu")
        try:
            backend.can_run(device, raise_error=True)
            status[name] = None
        except RuntimeError as error:
            status[name] = str(error)
    return status
