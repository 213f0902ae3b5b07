"""Checks of single arguments; each message has the name, the expected value and the actual one."""

import itertools

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor

# Max value of a count: products with it must fit 64-bit shapes.
MAX_COUNT = 2**31 - 1

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INDEX_DTYPES = (torch.int64, torch.int32)
_FLOAT_NAMES = "float64, float32, bfloat16 or float16"


def check_tensor(name: str, value) -> None:
    """Check that `value` is a dense tensor: not nested, not sparse, not in an MKL-DNN layout."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.is_nested:
        raise TypeError(
            f"{name}: expected a dense tensor, got a nested one; pad it with `to_padded_tensor` "
            "and pass a token_mask, or pass its values with cu_seqlens"
        )
    if value.layout != torch.strided:
        raise TypeError(
            f"{name}: expected a dense tensor, got layout {value.layout}; use `to_dense()`"
        )


def check_shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    """Check that `value` is a tensor of exactly this shape."""
    check_tensor(name, value)
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {tuple(expected)}, got {tuple(value.shape)}")


def check_device(name: str, value: Tensor, device: torch.device, like: str = "x") -> None:
    """Check that `value` is on `device`, the device of the argument `like`."""
    if value.device != device:
        raise ValueError(f"{name}: expected device {device} like {like}, got {value.device}")


def check_dtype(name: str, value: Tensor, *dtypes: torch.dtype) -> None:
    """Check that `value` is a tensor of one of the dtypes."""
    check_tensor(name, value)
    if value.dtype not in dtypes:
        raise TypeError(
            f"{name}: expected dtype {' or '.join(map(str, dtypes))}, got {value.dtype}"
        )


def check_float(name: str, value) -> None:
    """Check that `value` is a tensor of a floating-point dtype that the backends take."""
    check_tensor(name, value)
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected dtype {_FLOAT_NAMES}, got {value.dtype}")


def check_offsets(name: str, value) -> None:
    """Check dtype and shape of (B + 1,) offsets; `longest_image` checks their values."""
    check_tensor(name, value)
    if value.dtype not in INDEX_DTYPES:
        raise TypeError(f"{name}: expected dtype torch.int32, got {value.dtype}")
    if value.dim() != 1 or value.shape[0] == 0:
        raise ValueError(f"{name}: expected shape (B + 1,), got {tuple(value.shape)}")


def longest_image(cu_seqlens: Tensor, total: int) -> int:
    """Return the maximum number of tokens of an image; check that offsets rise from 0 to `total`.

    Waits for the device.
    """
    offsets = cu_seqlens.tolist()
    lengths = [b - a for a, b in itertools.pairwise(offsets)]
    if offsets[0] != 0 or offsets[-1] != total or min(lengths, default=0) < 0:
        raise ValueError(
            f"cu_seqlens: expected non-decreasing offsets from 0 to {total}, got {offsets}"
        )
    return max(lengths, default=0)


def check_max_seqlen(value, expected: str) -> None:
    """Check that `value` is a valid maximum number of tokens; `expected` is for the message."""
    if not isinstance(value, int | torch.SymInt) or value < 0:
        raise ValueError(f"max_seqlen: expected {expected}, got {value!r}")
    if value > MAX_COUNT:
        raise ValueError(f"max_seqlen: expected at most {MAX_COUNT}, got {value}")


def readable(value: Tensor) -> bool:
    """Return True if reading values neither waits for a device nor breaks a traced graph."""
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    # Under `torch.vmap` a tensor has one value per sample; a fake tensor has no values.
    while is_functorch_wrapped_tensor(value):
        if is_batchedtensor(value):
            return False
        value = get_unwrapped(value)
    return not isinstance(value, FakeTensor)


def check_values(name: str, value: Tensor, low: int, high: int) -> None:
    """Check that integers lie in [`low`, `high`], if the values are readable."""
    if not readable(value) or value.numel() == 0:
        return
    smallest, largest = (bound.item() for bound in value.aminmax())
    misfit = smallest if smallest < low else largest
    if not low <= misfit <= high:
        raise ValueError(f"{name}: expected values from {low} to {high}, got {misfit}")
