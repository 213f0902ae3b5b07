"""Sine-cosine encodings of positions in an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def grid_positions(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Return patch centres, (rows · columns, 2) float32 (y, x) in (0, 1), in raster order.

    A point of the image has the same position on every grid.
    """
    y = (torch.arange(rows, device=device) + 0.5) / rows
    x = (torch.arange(columns, device=device) + 0.5) / columns
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flatten(0, 1)


def sincos_encoding(positions: Tensor, width: int, periods: int = 16) -> Tensor:
    """Encode both coordinates by sines and cosines at geometric frequencies.

    Args:
        positions: (..., 2) in [0, 1].
        width: width of the encoding, a multiple of 4.
        periods: periods of the highest frequency across the image; the lowest has half a period.

    Returns:
        (..., width) float32.

    Raises:
        ValueError: `width` is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"width: expected a multiple of 4, got {width}")
    steps = torch.arange(width // 4, device=positions.device) / max(1, width // 4 - 1)
    frequency = math.pi * (2.0 * periods) ** steps  # (width / 4,)
    angle = positions.float()[..., None] * frequency  # (..., 2, width / 4)
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)
