"""Shapelet encoding of the position, size and shape of a part of an image.

The first three channels are the pose: the centre (y, x) in sides of the image, and the logarithm
of the scale, the root mean square distance from the centre along an axis. The others are the
shape: coefficients of the part's indicator in products of Hermite functions around that centre,
stretched by that scale ("shapelets", Refregier, MNRAS 2003), lowest order first, normalised to unit
length. So a moved or enlarged object differs in its pose only, and small parts are encoded as
finely as large ones.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Number of channels of the pose.
POSE = 3
# Units of the Hermite functions per scale: a disc, whose radius is 2 scales, has 3 units. With
# fewer the oscillations are too long for its boundary, with more they end before it.
_UNITS = 1.5
# Factor that makes the decoded indicator of a disc about 1 inside.
_GAIN = 2 * _UNITS * math.pi**0.5
_TINY = 1e-6


def encode_shapelets(weights: Tensor, grid: tuple[int, int], width: int) -> Tensor:
    """Encode parts of images as shapelets.

    Args:
        weights: (B, R, N), at least 0, fraction of each part in each patch, in raster order; the
            fractions of a part sum to 1.
        grid: (H, W) with H · W = N.
        width: number of channels, more than `POSE`.

    Returns:
        (B, R, width) float32, finite also for an empty part; carries gradient.

    Raises:
        ValueError: `width` is too small.
    """
    number = _check_width(width)
    # In half precision a small part would move by a fraction of its size.
    with torch.autocast(weights.device.type, enabled=False):
        return _encode(weights.float().unflatten(-1, grid), grid, number)


def decode_shapelets(shapelets: Tensor, rows: int, columns: int, emphasis: Tensor) -> Tensor:
    """Reconstruct the indicators of parts on a grid.

    Args:
        shapelets: (B, R, width).
        rows: number of rows of the grid over the image.
        columns: number of columns of the grid.
        emphasis: (width - POSE,), weight of each coefficient of a shape.

    Returns:
        (B, R, rows · columns); with `emphasis` 1 about 1 inside a disc and 0 outside.
    """
    with torch.autocast(shapelets.device.type, enabled=False):
        return _decode(shapelets.float(), rows, columns, emphasis.float())


def unit_shapes(tokens: Tensor, width: int) -> Tensor:
    """Normalise the shapes in tokens (..., token_dim), whose last `width` channels are shapelets.

    Shapelets that a model generates, or that have noise, are only close to unit length.
    """
    number = _check_width(width)
    rest, shape = tokens[..., :-number], tokens[..., -number:]
    return torch.cat([rest, F.normalize(shape, dim=-1, eps=_TINY)], -1)


def taper(width: int) -> Tensor:
    """Return a Gaussian over the coefficients of a shape, (width - POSE,) float32, 1 to exp(-2).

    With the full weight of the highest orders edges would ring.
    """
    orders = torch.tensor(_orders(_check_width(width))).sum(0).float()
    return torch.exp(-2 * (orders / orders[-1].clamp(min=1)).square())


def _encode(weights: Tensor, grid: tuple[int, int], number: int) -> Tensor:
    """Encode weights (B, R, H, W) with `number` coefficients."""
    y, x = (_centres(side, weights.device) for side in grid)
    down, across = weights.sum(-1), weights.sum(-2)  # (B, R, H), (B, R, W)
    centre_y, centre_x = down @ y, across @ x  # (B, R)
    spread_y = (down * (y - centre_y[..., None]).square()).sum(-1)
    spread_x = (across * (x - centre_x[..., None]).square()).sum(-1)
    # Patches are squares, not points.
    within = (grid[0] ** -2 + grid[1] ** -2) / 12
    scale = ((spread_y + spread_x + within) / 2).sqrt()
    waves_y, waves_x, (order_y, order_x) = _waves(centre_y, centre_x, scale, y, x, number)
    shape = (waves_y.mT @ weights @ waves_x)[..., order_y, order_x]  # (B, R, number)
    pose = torch.stack([centre_y, centre_x, scale.log()], -1)
    return unit_shapes(torch.cat([pose, shape], -1), POSE + number)


def _decode(shapelets: Tensor, rows: int, columns: int, emphasis: Tensor) -> Tensor:
    centre_y, centre_x, log_scale = shapelets[..., :POSE].unbind(-1)
    y, x = (_centres(side, shapelets.device) for side in (rows, columns))
    number = shapelets.shape[-1] - POSE
    # An untrained model may generate any pose.
    scale = log_scale.clamp(-10, 3).exp()
    waves_y, waves_x, (order_y, order_x) = _waves(centre_y, centre_x, scale, y, x, number)
    num_orders = waves_y.shape[-1]
    shape = shapelets.new_zeros(*shapelets.shape[:-1], num_orders, num_orders)
    shape[..., order_y, order_x] = _GAIN * shapelets[..., POSE:] * emphasis
    return (waves_y @ shape @ waves_x.mT).flatten(-2)


def _waves(
    centre_y: Tensor, centre_x: Tensor, scale: Tensor, y: Tensor, x: Tensor, number: int
) -> tuple[Tensor, Tensor, tuple[list[int], list[int]]]:
    """Return Hermite functions at rows (B, R, H, K) and columns (B, R, W, K), and paired orders."""
    orders = _orders(number)
    num_orders = 1 + max(orders[0])
    unit = (scale / _UNITS)[..., None]
    waves_y, waves_x = (
        _hermite_functions((position - centre[..., None]) / unit, num_orders)
        for position, centre in ((y, centre_y), (x, centre_x))
    )
    return waves_y, waves_x, orders


def _hermite_functions(u: Tensor, number: int) -> Tensor:
    """Return (..., number), the first orthonormal Hermite functions at u, by their recurrence."""
    found = [math.pi**-0.25 * torch.exp(-0.5 * u.square())]
    before = torch.zeros_like(u)
    for n in range(1, number):
        following = math.sqrt(2 / n) * u * found[-1] - math.sqrt((n - 1) / n) * before
        before = found[-1]
        found.append(following)
    return torch.stack(found, -1)


def _centres(side: int, device: torch.device) -> Tensor:
    return (torch.arange(side, device=device) + 0.5) / side


@functools.lru_cache
def _orders(number: int) -> tuple[list[int], list[int]]:
    """Return the orders down and across of the first products, lowest total order first."""
    num_orders = 1 + math.isqrt(2 * number)
    pairs = [(total - across, across) for total in range(num_orders) for across in range(total + 1)]
    down, across = zip(*pairs[:number], strict=True)
    return list(down), list(across)


def _check_width(width: int) -> int:
    if width <= POSE:
        raise ValueError(f"width: expected more than {POSE}, got {width}")
    return width - POSE
