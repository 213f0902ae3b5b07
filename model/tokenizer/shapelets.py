"""Outlines: where a part of a picture lies, how large it is, and its shape in a frame of its own.

An outline is a row of numbers. The first three are its pose: the centre (y, x) in sides of the
picture, and the logarithm of its scale, the root mean square distance from the centre along an
axis. The others are its shape: the coefficients of the part's indicator in the products of Hermite
functions around that centre, stretched by that scale ("shapelets", Refregier, MNRAS 2003), fewest
oscillations first, of unit length together. So the same thing elsewhere, or larger, differs in its
pose alone, and a small part is described as finely as a large one.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers of the pose.
POSE = 3
# Unit of the Hermite functions, in scales: a disc, whose radius is 2 scales, has 3 units. With
# fewer the oscillations are too long for its border, with more they end before it.
_UNITS = 1.5
# What makes the drawing of a disc about 1 inside.
_GAIN = 2 * _UNITS * math.pi**0.5
_TINY = 1e-6


def outlines_of(share: Tensor, grid: tuple[int, int], width: int) -> Tensor:
    """Outlines of parts.

    Args:
        share: (B, R, N), at least 0, how much of each part lies in each patch, line by line; a
            part's sum to 1.
        grid: (H, W) with H · W = N.
        width: numbers of an outline, more than `POSE`.

    Returns:
        (B, R, width) float32, finite also for a part that is nowhere; carries gradient.

    Raises:
        ValueError: `width` is too small.
    """
    number = _check_width(width)
    # Half precision would move a small part by a part of its size.
    with torch.autocast(share.device.type, enabled=False):
        return _outlines_of(share.float().unflatten(-1, grid), grid, number)


def drawn_outlines(outlines: Tensor, rows: int, columns: int, emphasis: Tensor) -> Tensor:
    """How much each place of a grid belongs to each part.

    Args:
        outlines: (B, R, width).
        rows: of the grid over the picture.
        columns: of it.
        emphasis: (width - POSE,), how much each coefficient of a shape counts.

    Returns:
        (B, R, rows · columns); with `emphasis` 1 about 1 inside a disc and 0 outside.
    """
    with torch.autocast(outlines.device.type, enabled=False):
        return _drawn_outlines(outlines.float(), rows, columns, emphasis.float())


def unit_shapes(tokens: Tensor, width: int) -> Tensor:
    """Tokens (..., token_dim) whose outlines, the last `width` numbers, have unit shapes again.

    Whoever makes outlines by a model or adds noise to them only nearly has that.
    """
    number = _check_width(width)
    rest, shape = tokens[..., :-number], tokens[..., -number:]
    return torch.cat([rest, F.normalize(shape, dim=-1, eps=_TINY)], -1)


def taper(width: int) -> Tensor:
    """A Gaussian over the coefficients of a shape, (width - POSE,) float32, from 1 to exp(-2).

    Counting what oscillates most as much as the rest would make edges ring.
    """
    orders = torch.tensor(_orders(_check_width(width))).sum(0).float()
    return torch.exp(-2 * (orders / orders[-1].clamp(min=1)).square())


def _outlines_of(share: Tensor, grid: tuple[int, int], number: int) -> Tensor:
    """Of shares (B, R, H, W), with `number` coefficients."""
    y, x = (_middles(side, share.device) for side in grid)
    down, across = share.sum(-1), share.sum(-2)  # (B, R, H), (B, R, W)
    centre_y, centre_x = down @ y, across @ x  # (B, R)
    spread_y = (down * (y - centre_y[..., None]).square()).sum(-1)
    spread_x = (across * (x - centre_x[..., None]).square()).sum(-1)
    # Patches are squares, not points.
    within = (grid[0] ** -2 + grid[1] ** -2) / 12
    scale = ((spread_y + spread_x + within) / 2).sqrt()
    waves_y, waves_x, (order_y, order_x) = _waves(centre_y, centre_x, scale, y, x, number)
    shape = (waves_y.mT @ share @ waves_x)[..., order_y, order_x]  # (B, R, number)
    pose = torch.stack([centre_y, centre_x, scale.log()], -1)
    return unit_shapes(torch.cat([pose, shape], -1), POSE + number)


def _drawn_outlines(outlines: Tensor, rows: int, columns: int, emphasis: Tensor) -> Tensor:
    centre_y, centre_x, log_scale = outlines[..., :POSE].unbind(-1)
    y, x = (_middles(side, outlines.device) for side in (rows, columns))
    number = outlines.shape[-1] - POSE
    # What is drawn by a model may have any pose at first.
    scale = log_scale.clamp(-10, 3).exp()
    waves_y, waves_x, (order_y, order_x) = _waves(centre_y, centre_x, scale, y, x, number)
    most = waves_y.shape[-1]
    shape = outlines.new_zeros(*outlines.shape[:-1], most, most)
    shape[..., order_y, order_x] = _GAIN * outlines[..., POSE:] * emphasis
    return (waves_y @ shape @ waves_x.mT).flatten(-2)


def _waves(
    centre_y: Tensor, centre_x: Tensor, scale: Tensor, y: Tensor, x: Tensor, number: int
) -> tuple[Tensor, Tensor, tuple[list[int], list[int]]]:
    """Hermite functions at rows (B, R, H, K) and columns (B, R, W, K), and which make products."""
    orders = _orders(number)
    most = 1 + max(orders[0])
    unit = (scale / _UNITS)[..., None]
    waves_y, waves_x = (
        _hermite_functions((place - centre[..., None]) / unit, most)
        for place, centre in ((y, centre_y), (x, centre_x))
    )
    return waves_y, waves_x, orders


def _hermite_functions(u: Tensor, number: int) -> Tensor:
    """(..., number), the first orthonormal Hermite functions at u, by their recurrence."""
    found = [math.pi**-0.25 * torch.exp(-0.5 * u.square())]
    before = torch.zeros_like(u)
    for n in range(1, number):
        following = math.sqrt(2 / n) * u * found[-1] - math.sqrt((n - 1) / n) * before
        before = found[-1]
        found.append(following)
    return torch.stack(found, -1)


def _middles(side: int, device: torch.device) -> Tensor:
    return (torch.arange(side, device=device) + 0.5) / side


@functools.lru_cache
def _orders(number: int) -> tuple[list[int], list[int]]:
    """Oscillations down and across of the first products, those with the fewest first."""
    most = 1 + math.isqrt(2 * number)
    pairs = [(total - across, across) for total in range(most) for across in range(total + 1)]
    down, across = zip(*pairs[:number], strict=True)
    return list(down), list(across)


def _check_width(width: int) -> int:
    if width <= POSE:
        raise ValueError(f"width: expected more than {POSE}, got {width}")
    return width - POSE
