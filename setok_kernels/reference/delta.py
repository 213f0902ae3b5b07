"""Order of the tokens, and distance to the nearest token of higher order (SeTok, Eq. 2)."""

import torch
from torch import Tensor


def nearest_higher(distance: Tensor, density: Tensor, ok: Tensor) -> Tensor:
    """Return the parents (B, N): the nearest token that precedes each, -1 for the top token.

    Token j precedes i if its density is higher, or equal and j < i. Ties go to the lowest index.
    """
    own, other = density[:, :, None], density[:, None, :]
    index = torch.arange(density.shape[1], device=density.device)
    precedes = (other > own) | ((other == own) & (index[None, :] < index[:, None]))
    precedes = precedes & ok[:, None, :] & ok[:, :, None]
    parent = distance.masked_fill(~precedes, torch.inf).argmin(2)
    return parent.masked_fill(~precedes.any(2), -1)


def seed_distance(distance: Tensor, parent: Tensor, sigma: Tensor, ok: Tensor) -> Tensor:
    """Return delta_i = d(i, parent_i), and for the top token the maximum distance of its row.

    Args:
        distance: (B, N, N) unscaled squared distances.
        parent: (B, N) parents, -1 for the top token.
        sigma: (B,) scale of the distances.
        ok: (B, N) bool, False for excluded tokens, whose delta is 0.
    """
    farthest = distance.detach().masked_fill(~ok[:, None, :], -1).argmax(2)
    target = torch.where(parent >= 0, parent, farthest)
    delta = sigma[:, None] * distance.gather(2, target[:, :, None])[:, :, 0]
    # An infinite delta at density 0 would make the score NaN.
    delta = delta.clamp(max=torch.finfo(delta.dtype).max)
    return torch.where(ok, delta, 0)
