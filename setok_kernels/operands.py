"""Checks of the operands of `setok::…` for kernels that Python launches; no value is read.

The C++ kernels check their operands, and their values too, in csrc/checks.cpp.
"""

import math
from typing import Any

import torch
from torch import Tensor

from setok_kernels.arguments import (
    FLOAT_DTYPES,
    INDEX_DTYPES,
    check_device,
    check_dtype,
    check_shape,
)
from setok_kernels.config import LEARNABLE, check_count
from setok_kernels.saved import saved_bytes

_INDICES = ("knn", "parent", "seeds", "counts", "labels", "budget")
_PER_TOKEN = (
    *("valid", "parent", "labels", "weights", "noise", "importance"),
    *("density", "delta", "score", "grad_density", "grad_delta", "grad_score"),
)


def check_operands(operands: dict) -> None:
    """Check shapes, dtypes and devices of operands, keyed by their names in the schema.

    Raises:
        TypeError, ValueError: an operand does not fit; the message names it.
    """
    packed = operands["cu_seqlens"] is not None
    main = "x" if "x" in operands else "tokens"
    leading, sizes = _sizes(operands, packed)
    images = operands["cu_seqlens"].numel() - 1 if packed else leading[0]
    if not packed and operands["max_seqlen"] < leading[1]:
        raise ValueError(
            f"max_seqlen: expected at least {leading[1]}, got {operands['max_seqlen']}"
        )
    if operands.get("exact") and not operands["distinct_seeds"]:
        raise ValueError("exact: expected distinct_seeds with it, got repeated seeds")
    rows, dim = sizes["rows"], operands[main].shape[-1]
    mask_shape = (rows, *leading) if packed else (images, rows, leading[-1])
    shapes = dict.fromkeys(_PER_TOKEN, leading) | {
        "x": (*leading, dim),
        "tokens": (images, rows, dim),
        "grad": (images, rows, dim) if main == "x" else (*leading, dim),
        "cu_seqlens": (images + 1,),
        "knn": (*leading, sizes["k"]),
        "seeds": (images, rows - 1),
        "counts": (images,),
        "budget": (images,),
        "learnable": (len(LEARNABLE),),
        "saved": (saved_bytes(math.prod(leading), images),),
        "masks": mask_shape,
        "grad_masks": mask_shape,
    }
    for name, value in operands.items():
        if isinstance(value, Tensor):
            check_dtype(name, value, *_dtypes(name))
            check_shape(name, value, shapes[name])
            check_device(name, value, operands[main].device, like=main)


def _sizes(operands: dict, packed: bool) -> tuple[tuple[int, ...], dict]:
    """Return the shape of the tokens, and a dict of `k` and `rows`."""
    merging = "labels" in operands
    tokens = operands["labels" if merging else "x"]
    expected = (1 if packed else 2) + (not merging)
    if tokens.dim() != expected:
        name = "labels" if merging else "x"
        raise ValueError(f"{name}: expected {expected} axes, got shape {tuple(tokens.shape)}")
    if not merging:
        known: list[Any] = [operands.get(name) for name in ("knn", "parent", "seeds", "counts")]
        given = sum(value is not None for value in known)
        if given not in (0, 4):
            raise ValueError(
                f"decisions: expected all of knn, parent, seeds and counts, or none, got {given}"
            )
        k, clusters = operands.get("k"), operands.get("max_clusters")
        if k is None and given:
            k, clusters = _last(known[0]), _last(known[2])
        for name, count in (("k", k), ("max_clusters", clusters)):
            if count is not None:
                check_count(name, count)
        return tuple(tokens.shape[:-1]), dict(k=k, rows=(clusters or 0) + 1)
    name = "grad" if "x" in operands else "tokens"
    rows = operands.get("rows")
    if rows is None:
        if operands[name].dim() != 3:
            shape = tuple(operands[name].shape)
            raise ValueError(f"{name}: expected shape (B, rows, D), got {shape}")
        rows = operands[name].shape[1]
    if rows < 0:
        raise ValueError(f"rows: expected at least 0, got {rows}")
    return tuple(tokens.shape), dict(k=None, rows=rows)


def _last(value: Tensor) -> int:
    return value.shape[-1] if value.dim() else 0


def _dtypes(name: str) -> tuple[torch.dtype, ...]:
    if name == "cu_seqlens":
        return INDEX_DTYPES
    if name in _INDICES:
        return (torch.int64,)
    if name == "saved":
        return (torch.uint8,)
    return (torch.bool,) if name == "valid" else FLOAT_DTYPES
