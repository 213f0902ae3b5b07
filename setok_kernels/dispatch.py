"""Which backend runs: one predicate per backend decides both the choice and the error message."""

import importlib
import importlib.util
import os

import torch

from setok_kernels import _native, reference


def can_run_reference(device: torch.device, raise_error: bool = False) -> bool:
    """Plain PyTorch runs on every device."""
    return True


def can_run_cpp(device: torch.device, raise_error: bool = False) -> bool:
    """Whether the compiled CPU kernels can take tensors on `device`."""
    if device.type != "cpu":
        reason = f"takes CPU tensors, got {device}; use backend='reference'"
    else:
        reason = _native.why_missing()
    return _verdict("cpp", reason, raise_error)


def can_run_triton(device: torch.device, raise_error: bool = False) -> bool:
    """Whether the Triton kernels can take tensors on `device`, or be interpreted on the CPU."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    # A folder named triton on the path is found too, but has no origin.
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        reason = "the package triton is not installed; use backend='reference'"
    elif device.type == "cpu" and interpreted:
        reason = None
    elif device.type != "cuda":
        reason = f"takes CUDA tensors, got {device}; use backend='reference'"
    elif not torch.cuda.is_available():
        reason = "needs a CUDA device and this torch sees none; use backend='reference'"
    else:
        reason = None
    return _verdict("triton", reason, raise_error)


def _verdict(name: str, reason: str | None, raise_error: bool) -> bool:
    if reason is not None and raise_error:
        raise RuntimeError(f"backend='{name}' cannot run: {reason}")
    return reason is None


# The order in which backend="auto" asks: fastest first, but the Triton kernels, which have not run
# on a GPU yet, only when named. A module, or the name of one that is imported when first chosen.
_BACKENDS = {
    "cpp": (can_run_cpp, "setok_kernels.cpp"),
    "reference": (can_run_reference, reference),
    "triton": (can_run_triton, "setok_triton.backend"),
}


def select_backend(name: str, device: torch.device):
    """The module that runs, for `backend=name` and tensors on `device`.

    Raises:
        ValueError: no backend has this name.
        RuntimeError: the named backend cannot run here; says why and what to do.
    """
    if name == "auto":
        module = next(module for can_run, module in _BACKENDS.values() if can_run(device))
    elif name in _BACKENDS:
        can_run, module = _BACKENDS[name]
        can_run(device, raise_error=True)
    else:
        raise ValueError(f"backend: expected one of auto, {', '.join(_BACKENDS)}, got {name!r}")
    return importlib.import_module(module) if isinstance(module, str) else module


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
