"""Which backend runs: one predicate per backend decides both the choice and the error message."""

import importlib.util
import os

import torch
from torch.autograd import forward_ad

from setok_kernels import _native, reference
from setok_kernels.compiled import Compiled


def can_run_reference(device: torch.device, raise_error: bool = False) -> bool:
    """Plain PyTorch runs on every device."""
    return True


def can_run_cpp(device: torch.device, raise_error: bool = False) -> bool:
    """Whether the compiled CPU kernels can take tensors on `device`."""
    if device.type != "cpu":
        reason = f"takes CPU tensors, got {device}; use backend='reference'"
    else:
        reason = _why_no_cpp()
    return _verdict("cpp", reason, raise_error)


def can_run_triton(device: torch.device, raise_error: bool = False) -> bool:
    """Whether the Triton kernels can take tensors on `device`, or be interpreted on the CPU."""
    reason = _why_no_triton()
    if reason is None and not (device.type == "cpu" and _interpreted()):
        if device.type != "cuda":
            reason = f"takes CUDA tensors, got {device}; use backend='reference'"
        elif not torch.cuda.is_available():
            reason = "needs a CUDA device and this torch sees none; use backend='reference'"
    return _verdict("triton", reason, raise_error)


def is_followed() -> bool:
    """Whether forward-mode AD or torch.func may follow the operations: only the reference's can be.

    A compiled call has no such state; there an operation that is followed says so itself.
    """
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


# What follows does not change while a program runs, and a compiler need not look inside.


@torch.compiler.assume_constant_result
def _why_no_cpp() -> str | None:
    return _native.why_missing()


@torch.compiler.assume_constant_result
def _why_no_triton() -> str | None:
    # A folder named triton on the path is found too, but has no origin.
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        return "the package triton is not installed; use backend='reference'"
    return None


@torch.compiler.assume_constant_result
def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _verdict(name: str, reason: str | None, raise_error: bool) -> bool:
    if reason is not None and raise_error:
        raise RuntimeError(f"backend='{name}' cannot run: {reason}")
    return reason is None


def _triton_on(device: torch.device) -> Compiled:
    # In the interpreter the kernels take CPU tensors, which in `setok` are C++'s.
    return Compiled("triton", "setok_interpreted" if device.type == "cpu" else "setok")


# The order in which backend="auto" asks: fastest first, but the Triton kernels, which have not run
# on a GPU yet, only when named. A predicate, and what runs on a device.
_BACKENDS = {
    "cpp": (can_run_cpp, lambda device: Compiled("cpp")),
    "reference": (can_run_reference, lambda device: reference),
    "triton": (can_run_triton, _triton_on),
}


def select_backend(name: str, device: torch.device):
    """The backend that runs, for `backend=name` and tensors on `device`.

    "auto" is the reference inside of torch.func's transforms and levels of forward-mode AD.

    Raises:
        ValueError: no backend has this name.
        RuntimeError: the named backend cannot run here; says why and what to do.
    """
    if name == "auto" and is_followed():
        return reference
    if name == "auto":
        make = next(make for can_run, make in _BACKENDS.values() if can_run(device))
    elif isinstance(name, str) and name in _BACKENDS:
        can_run, make = _BACKENDS[name]
        can_run(device, raise_error=True)
    else:
        raise ValueError(f"backend: expected one of auto, {', '.join(_BACKENDS)}, got {name!r}")
    return make(device)


def backends() -> dict[str, str | None]:
    """Every backend by name: None if it can run on this machine, else the reason and the remedy."""
    status = {}
    for name, (can_run, _) in _BACKENDS.items():
        device = torch.device("cuda" if name == "triton" else "cpu")
        try:
            can_run(device, raise_error=True)
            status[name] = None
        except RuntimeError as error:
            status[name] = str(error)
    return status
