"""Distances and local density (SeTok, Eq. 1)."""

import torch
from torch import Tensor


def normalise_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each image by a power of two so that no squared distance over- or underflows.

    The scaling is exact: results have the same bits as the unscaled computation if that one stays
    in range.

    Args:
        x: (B, N, D) finite tokens.

    Returns:
        (B, N, D) with magnitudes of at most about 1, and `exponent` (B,): x = result * 2**exponent.
    """
    largest = x.detach().abs().amax((1, 2))
    # The exponent of frexp, which ONNX lacks; one more if log2 rounds up to an integer.
    exponent = torch.where(largest > 0, largest.log2().floor() + 1, 0).int()
    # 2**-exponent may leave the range of the dtype; its two factors do not.
    half = exponent // 2
    for part in (half, exponent - half):
        x = x * torch.exp2(-part.to(x.dtype))[:, None, None]
    return x, exponent


def squared_distances(x: Tensor) -> Tensor:
    """Return ||x_i - x_j||^2 (B, N, N) through the Gram matrix: >= 0, exactly 0 on the diagonal.

    The norms are the diagonal of the Gram matrix, so that duplicates have distance exactly 0.
    """
    gram = torch.bmm(x, x.mT)
    norm = gram.diagonal(dim1=1, dim2=2)
    distance = (norm[:, :, None] + norm[:, None, :] - 2 * gram).clamp(min=0)
    diagonal = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    return distance.masked_fill(diagonal, 0)


def variance_scale(x: Tensor, ok: Tensor) -> Tensor:
    """Return sigma (B,) that makes the mean pairwise distance 1: 1 / (2 v), and 0 if v = 0.

    The first token is subtracted from all tokens. So v of equal tokens is exactly 0, and a large
    common offset costs no precision. Sums in float64 are exact for small integers, so their scale
    does not depend on padding or the order of the tokens.
    """
    first = ok.int().argmax(1)
    origin = x[torch.arange(x.shape[0], device=x.device), first]
    count = ok.sum(1).clamp(min=1).double()
    shifted = torch.where(ok[:, :, None], (x - origin[:, None]).double(), 0)
    # v = sum ||y||^2 / n - ||sum y||^2 / n^2, over a common denominator.
    squares, total = shifted.square().sum((1, 2)), shifted.sum(1).square().sum(1)
    variance = (count * squares - total) / count.square()
    return torch.where(variance > 0, 0.5 / variance, 0).to(x.dtype)


def fixed_scale(x: Tensor, exponent: Tensor, sigma: float) -> Tensor:
    """Return the factor (B,) that maps distances of range-normalised tokens to sigma * ||.||^2."""
    largest = torch.finfo(x.dtype).max
    scale = torch.full_like(x[:, 0, 0], sigma)
    half = torch.exp2(exponent.to(x.dtype)).clamp(max=largest)
    return (scale * half * half).clamp(max=largest)


def nearest_neighbours(distance: Tensor, ok: Tensor, k: int, include_self: bool) -> Tensor:
    """Return the k nearest tokens (B, N, k), ascending, ties lowest index, -1 for none."""
    candidate = ok[:, None, :] & ok[:, :, None]
    if not include_self:
        candidate = candidate & ~torch.eye(ok.shape[1], dtype=torch.bool, device=ok.device)
    left, knn = distance.masked_fill(~candidate, torch.inf), []
    for _ in range(k):
        nearest = left.argmin(2, keepdim=True)
        knn.append(torch.where(left.gather(2, nearest) < torch.inf, nearest, -1))
        left = left.scatter(2, nearest, torch.inf)
    return torch.cat(knn, 2)


def local_density(distance: Tensor, knn: Tensor, sigma: Tensor, ok: Tensor) -> Tensor:
    """Return rho_i = exp(-mean of the neighbours' distances) (Eq. 1), 1 without neighbours.

    Args:
        distance: (B, N, N) unscaled squared distances.
        knn: (B, N, K) neighbours, -1 for none.
        sigma: (B,) scale of the distances.
        ok: (B, N) bool, False for excluded tokens, whose density is 0.
    """
    found = knn >= 0
    near = torch.where(found, distance.gather(2, knn.clamp(min=0)), 0)
    # Scaling the sum, not the terms, keeps sums of small integers exact, so ties stay ties.
    mean = near.sum(2) / found.sum(2).clamp(min=1)
    return torch.where(ok, torch.exp(-sigma[:, None] * mean), 0)
