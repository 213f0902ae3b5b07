"""Which backend runs: one predicate per backend decides both the choice and the error message."""

import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd import forward_ad

from setok_kernels import _native, _triton_package, reference
from setok_kernels._tracing import constant_in_graphs
from setok_kernels.compiled import TRITON_DTYPES, Compiled
from setok_kernels.config import INTERPRETED, NAMESPACE
from setok_kernels.verification import trust


def can_run_reference(
    device: torch.device, *dtypes: torch.dtype, raise_error: bool = False
) -> bool:
    """Plain PyTorch runs on every device."""
    return True


def can_run_cpp(device: torch.device, *dtypes: torch.dtype, raise_error: bool = False) -> bool:
    """Whether the compiled CPU kernels can take tensors on `device`."""
    if device.type != "cpu":
        reason: str | None = f"takes CPU tensors, got {device}; use backend='reference'"
    else:
        reason = _why_no_cpp()
    return _verdict("cpp", reason, raise_error)


def can_run_triton(device: torch.device, *dtypes: torch.dtype, raise_error: bool = False) -> bool:
    """Whether the Triton kernels can take tensors of these dtypes on `device`.

    They take CPU tensors where Triton interprets them.
    """
    reason = _why_no_triton()
    if reason is None and not (device.type == "cpu" and _interpreted()):
        if device.type != "cuda":
            reason = f"takes CUDA tensors, got {device}; use backend='reference'"
        elif not torch.cuda.is_available():
            reason = "needs a CUDA device and this torch sees none; use backend='reference'"
    for dtype in dtypes:
        if reason is None and dtype not in TRITON_DTYPES:
            reason = f"takes float32, bfloat16 and float16, got {dtype}; use backend='reference'"
    return _verdict("triton", reason, raise_error)


def is_followed() -> bool:
    """Whether forward-mode AD or torch.func may follow the operations: only the reference's can be.

    A compiled call has no such state; there an operation that is followed says so itself.
    """
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


# What follows does not change while a program runs, and a compiler need not look inside.


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
def _warn_of_reference() -> None:
    """Says once a process that the CPU kernels are missing: nothing falls back silently."""
    # Within, because torch.compile looks through the cache of a function that it may not follow.
    _warn_once()


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "setok_kernels runs on its reference backend, many times slower than its compiled CPU "
        f"kernels: {_why_no_cpp()}",
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
    """Whether "auto" may take the kernels: compiled ones, verified on this very device."""
    if device.type != "cuda" or _interpreted():
        return False
    index = torch.cuda.current_device() if device.index is None else device.index
    return _is_trusted(index)


@constant_in_graphs
def _is_trusted(index: int) -> bool:
    return trust.is_trusted(index)


@dataclass(frozen=True)
class _Backend:
    """One of them.

    Attributes:
        can_run: whether it takes tensors of some dtypes on a device; raises why not.
        make: what runs on a device.
        is_trusted: whether "auto" may take it there; asked where it can run.
    """

    can_run: Callable[..., bool]
    make: Callable[[torch.device], object]
    is_trusted: Callable[[torch.device], bool] = _always


# In the order in which backend="auto" asks: fastest first.
_BACKENDS = {
    "cpp": _Backend(can_run_cpp, lambda device: Compiled("cpp")),
    "triton": _Backend(can_run_triton, _triton_on, _triton_is_trusted),
    "reference": _Backend(can_run_reference, lambda device: reference),
}


def select_backend(name: str, device: torch.device, *dtypes: torch.dtype):
    """The backend that runs, for `backend=name` and tensors on `device`.

    "auto" is the reference inside of torch.func's transforms and levels of forward-mode AD. On CUDA
    it is the Triton kernels where they have been verified (`setok_kernels.verification`), which the
    first call does.

    Args:
        name: of the backend, or "auto".
        device: of the tensors.
        dtypes: of those in which a backend computes.

    Raises:
        ValueError: no backend has this name, or `SETOK_VERIFY` has no meaning.
        RuntimeError: the named backend cannot run here; says why and what to do.
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
    """Every backend by name: None if it can run on this machine, else the reason and the remedy."""
    status: dict[str, str | None] = {}
    for name, backend in _BACKENDS.items():
        device = torch.device("cuda" if name == "triton" else "cpu")
        try:
            backend.can_run(device, raise_error=True)
            status[name] = None
        except RuntimeError as error:
            status[name] = str(error)
    return status
