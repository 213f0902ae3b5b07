"""Masks as run lengths, in the two forms of COCO: a list of numbers, or its compressed text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def decode_rle(code: Mapping[str, Any]) -> np.ndarray:
    """A mask from {"size": [h, w], "counts": list, text or bytes}.

    Runs of pixels outside and inside take turns, column by column from the top, outside first.

    Args:
        code: as COCO and its tools write it.

    Returns:
        (h, w) bool.

    Raises:
        ValueError: a field is missing or malformed, or the runs do not fill the picture.
    """
    size, counts = (code.get(name) for name in ("size", "counts"))
    if (
        not isinstance(size, Sequence)
        or len(size) != 2
        or not all(isinstance(side, int) and side >= 0 for side in size)
    ):
        raise ValueError(f"size: expected height and width, got {size!r}")
    if isinstance(counts, str | bytes):
        counts = _unpack(counts.encode("ascii", "replace") if isinstance(counts, str) else counts)
    if not isinstance(counts, Sequence) or not all(isinstance(run, int) for run in counts):
        raise ValueError(f"counts: expected whole numbers or their text, got {counts!r}")
    height, width = size
    if any(run < 0 for run in counts) or sum(counts) != height * width:
        expected = f"runs of {height} × {width} pixels"
        raise ValueError(f"counts: expected {expected}, got {sum(counts)} in {len(counts)} runs")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """{"size", "counts"} of a mask, `counts` being the compressed text.

    Args:
        mask: (h, w) bool.

    Raises:
        ValueError: dtype or shape do not fit.
    """
    if mask.dtype != bool or mask.ndim != 2:
        raise ValueError(f"mask: expected (h, w) bool, got {mask.dtype} {mask.shape}")
    pixels = mask.T.ravel()
    starts = np.flatnonzero(np.diff(pixels)) + 1
    edges = np.concatenate([[0], starts, [len(pixels)]])
    counts = np.diff(edges).tolist()
    if len(pixels) and pixels[0]:
        counts = [0, *counts]
    return {"size": list(mask.shape), "counts": _pack(counts)}


def _unpack(text: bytes) -> list[int]:
    """Numbers of five bits a sign, low ones first; from the fourth on less the last but one."""
    counts: list[int] = []
    value = shift = 0
    for sign in text:
        bits = sign - 48
        if not 0 <= bits < 64:
            raise ValueError(f"counts: expected signs from '0' to 'o', got {chr(sign)!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("counts: expected a whole text, got one that is cut off")
    return counts


def _pack(counts: Sequence[int]) -> str:
    signs = []
    for number, count in enumerate(counts):
        value = count - (counts[number - 2] if number > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            # The highest bit of the last sign says whether the number is negative.
            more = value != (-1 if bits & 16 else 0)
            signs.append(chr(48 + (bits | 32 if more else bits)))
            if not more:
                break
    return "".join(signs)
