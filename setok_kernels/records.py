"""Checks that the fields of a result fit together, for results built, cropped or cast by hand."""

import dataclasses
import math
from typing import Any

import torch

from setok_kernels.arguments import (
    INDEX_DTYPES,
    check_device,
    check_dtype,
    check_float,
    check_max_seqlen,
    check_offsets,
    check_shape,
    check_tensor,
    check_values,
    longest_image,
    readable,
)


def check_record(out):
    """Check that shapes, dtypes and devices of a result agree, without reading labels.

    Int32 labels (scikit-learn) and 16-bit masks (mixed-precision policies) are widened; the values
    do not change.

    Returns:
        `out` with int64 indices and masks of at least 32 bits.

    Raises:
        TypeError, ValueError: a field does not fit; the message names it.
    """
    labels, packed, grid = out.labels, out.cu_seqlens is not None, out.grid
    check_dtype("labels", labels, *INDEX_DTYPES)
    if labels.dim() != (1 if packed else 2):
        expected = "(T,) with cu_seqlens" if packed else "(B, N)"
        raise ValueError(f"labels: expected shape {expected}, got {tuple(labels.shape)}")
    images = _check_offsets(out) if packed else labels.shape[0]
    _check_index("counts", out.counts, (images,), labels)
    fields = {field.name for field in dataclasses.fields(out)}
    widened = {"labels": torch.int64, "counts": torch.int64}
    if hasattr(out, "masks"):
        masks = out.masks
        check_float("masks", masks)
        before, tokens = labels.shape[:-1], labels.shape[-1]
        if masks.dim() != labels.dim() + 1 or (*masks.shape[:-2], masks.shape[-1]) != (
            *before,
            tokens,
        ):
            expected = ", ".join(map(str, (*before, "max_clusters + 1", tokens)))
            raise ValueError(f"masks: expected shape ({expected}), got {tuple(masks.shape)}")
        check_device("masks", masks, labels.device, like="the labels")
        widened["masks"] = torch.promote_types(masks.dtype, torch.float32)
    if "centres" in fields:
        check_tensor("centres", out.centres)
        if out.centres.dim() != 2:
            raise ValueError(
                f"centres: expected shape ({images}, C), got {tuple(out.centres.shape)}"
            )
        _check_index("centres", out.centres, (images, out.centres.shape[1]), labels)
        widened["centres"] = torch.int64
    if grid is not None and not (
        _is_grid(grid) and not packed and math.prod(grid) == labels.shape[1]
    ):
        expected = "None" if packed else f"None, (H, W) or (T, H, W) of {labels.shape[1]} tokens"
        raise ValueError(f"grid: expected {expected}, got {grid!r}")
    changed = {
        name: getattr(out, name).to(dtype)
        for name, dtype in widened.items()
        if name in fields and getattr(out, name).dtype != dtype
    }
    return dataclasses.replace(out, **changed) if changed else out


def check_members(out, weights=None) -> None:
    """Check that each label is a row, and that weights of labelled tokens are finite and >= 0.

    Values are read only if that does not wait for a device. `setok::merge` on the CPU has checks of
    its own.

    Raises:
        ValueError: a value does not fit; the message has the argument and the first such value.
    """
    check_values("labels", out.labels, -1, out.num_rows - 1)
    if weights is not None and readable(weights) and readable(out.labels):
        misfit = (out.labels >= 0) & ~((weights >= 0) & weights.isfinite())
        if misfit.any():
            got = weights[misfit][0].item()
            raise ValueError(f"weights: expected finite values of at least 0, got {got:g}")


def check_choices(out) -> None:
    """Check the ranges of `counts` and `centres` of a result that passed `check_record`."""
    images, longest = out.counts.shape[0], out.max_seqlen
    if out.cu_seqlens is None:
        longest = out.labels.shape[1]
    if hasattr(out, "decisions"):
        # The residual's row follows that of the last seed.
        seeds: Any = getattr(out.decisions, "seeds", None)
        name, centres, max_centres = "decisions.seeds", seeds, out.num_rows - 1
    else:
        name, centres, max_centres = "centres", out.centres, out.num_rows
    _check_index(name, centres, (images, max_centres), out.labels)
    check_values("counts", out.counts, 0, max_centres)
    check_values(name, centres, -1, longest - 1)


def _check_offsets(out) -> int:
    """Return B of a packed result; check that `cu_seqlens` and `max_seqlen` fit its labels."""
    check_offsets("cu_seqlens", out.cu_seqlens)
    check_device("cu_seqlens", out.cu_seqlens, out.labels.device, like="the labels")
    check_max_seqlen(out.max_seqlen, "the longest image's token count (an int)")
    if readable(out.cu_seqlens):
        longest = longest_image(out.cu_seqlens, out.labels.shape[0])
        if out.max_seqlen < longest:
            raise ValueError(f"max_seqlen: expected at least {longest}, got {out.max_seqlen}")
    return out.cu_seqlens.shape[0] - 1


def _is_grid(grid) -> bool:
    if not isinstance(grid, tuple | list) or len(grid) not in (2, 3):
        return False
    return all(isinstance(side, int | torch.SymInt) for side in grid)


def _check_index(name: str, value, shape: tuple[int, ...], labels) -> None:
    check_dtype(name, value, *INDEX_DTYPES)
    check_shape(name, value, shape)
    check_device(name, value, labels.device, like="the labels")
