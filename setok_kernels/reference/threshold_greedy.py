"""Greedy clustering by a threshold of the cosine similarity (DiVT)."""

import torch
from torch import Tensor

from setok_kernels import layout
from setok_kernels.reference.dpc_knn import nearest_centre, usable_tokens
from setok_kernels.reference.precision import own_dtype
from setok_kernels.result import HardClusters
from setok_kernels.selection import ascending


@own_dtype
@torch.no_grad()
def threshold_greedy(
    x: Tensor,
    valid: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    threshold: float,
) -> HardClusters:
    """Cluster padded or packed tokens; the arguments are those of `threshold_greedy`, checked."""
    total = x.shape[0]
    x, valid = layout.pad_tokens(x, valid, cu_seqlens, max_seqlen)
    x, ok = usable_tokens(x, valid)
    similarity = cosine_similarity(x)
    centres, counts = claim(similarity, ok, threshold)
    labels = nearest_centre(-similarity, ok, centres)
    if cu_seqlens is not None:
        labels = layout.unpad(labels, cu_seqlens, total)
    return HardClusters(labels=labels, centres=centres, counts=counts)


def cosine_similarity(x: Tensor) -> Tensor:
    """Return the cosine similarities (B, N, N), at most 1; 0 between a zero vector and others."""
    # The scaling by a power of two keeps squares and the smallest norm in range.
    largest = x.abs().amax(2, keepdim=True)
    x = x / torch.exp2(torch.where(largest > 0, largest, 1).log2().floor())
    x = x / x.norm(dim=2, keepdim=True).clamp(min=1e-12)
    # Rounding may lift equal tokens above 1.
    similarity = torch.bmm(x, x.mT).clamp(max=1)
    diagonal = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    return similarity.masked_fill(diagonal, 1)


def claim(similarity: Tensor, ok: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return the centres (B, N), ascending, -1 after the last, and their counts (B,).

    The token with the most neighbours, itself included, claims them all. The next centre is the
    unclaimed token with the most neighbours in the full image (ties lowest index), until none is
    left. A token is always its own neighbour, so every step claims at least one.
    """
    batch, tokens, _ = similarity.shape
    near = (similarity > threshold) & ok[:, None, :] & ok[:, :, None]
    near |= torch.eye(tokens, dtype=torch.bool, device=ok.device)
    neighbours, left = near.sum(2), ok.clone()
    image = torch.arange(batch, device=ok.device)
    chosen = torch.zeros_like(ok)
    for _ in range(tokens):
        centre = torch.where(left, neighbours, -1).argmax(1)
        live = left.any(1)
        chosen[image, centre] |= live
        left &= ~(near[image, centre] & live[:, None])
    token = torch.arange(tokens, device=ok.device)
    return ascending(torch.where(chosen, token, -1), tokens), chosen.sum(1)
