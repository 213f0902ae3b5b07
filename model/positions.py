"""Sine and cosine encodings of positions in a picture, and of sets of positions."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


def grid_positions(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Middles of the patches of a grid, (rows · columns, 2) float32 (y, x) in (0, 1), line by line.

    The same place of a picture has the same position whatever the grid.
    """
    y = (torch.arange(rows, device=device) + 0.5) / rows
    x = (torch.arange(columns, device=device) + 0.5) / columns
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flatten(0, 1)


def sincos_encoding(positions: Tensor, width: int, periods: int = 16) -> Tensor:
    """Sines and cosines of both coordinates at geometric frequencies.

    Args:
        positions: (..., 2) in [0, 1].
        width: of the encoding, a multiple of 4.
        periods: of the highest frequency over the picture; the lowest has half a period.

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


def wave_encoding(positions: Tensor, width: int) -> Tensor:
    """Sines and cosines of plane waves over the picture, the longest waves first.

    The mean of such encodings over a set of patches holds the Fourier coefficients of the set's
    indicator: its outline, up to the shortest wave. The inner product of that mean with the
    encoding of a place says whether the place is in the set.

    Args:
        positions: (..., 2) in [0, 1].
        width: of the encoding, a multiple of 2.

    Returns:
        (..., width) float32.

    Raises:
        ValueError: `width` is no multiple of 2.
    """
    if width % 2:
        raise ValueError(f"width: expected a multiple of 2, got {width}")
    waves = torch.tensor(_longest_waves(width // 2), device=positions.device)  # (width / 2, 2)
    # Half a period at least: over a whole one opposite borders would be the same place.
    angle = math.pi * positions.float() @ waves.float().T
    return torch.cat([angle.sin(), angle.cos()], -1)


def wave_taper(width: int) -> Tensor:
    """A Gaussian over the waves of `wave_encoding`, (width,) float32: from 1 down to exp(-2)."""
    squares = torch.tensor(_longest_waves(width // 2)).square().sum(1).float()  # (width / 2,)
    return torch.exp(-2 * squares / squares[-1]).repeat(2)


@functools.lru_cache
def _longest_waves(number: int) -> list[tuple[int, int]]:
    """Half periods over the picture in both directions, every wave once, the longest first."""
    most = 1 + math.isqrt(number)
    lattice = [(y, x) for y in range(-most, most + 1) for x in range(most + 1)]
    # A wave and its opposite are the same.
    half = [(y, x) for y, x in lattice if x > 0 or y > 0]
    return sorted(half, key=lambda w: (w[0] ** 2 + w[1] ** 2, w))[:number]
