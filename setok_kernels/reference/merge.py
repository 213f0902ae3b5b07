"""Merge of the tokens of each cluster into one token, and its transpose (unmerge)."""

import torch
from torch import Tensor

from setok_kernels import layout
from setok_kernels.records import check_members
from setok_kernels.reference.precision import own_dtype
from setok_kernels.result import Clusters, HardClusters, masks_of


@own_dtype
def merge(
    x: Tensor, out: Clusters | HardClusters, mode: str, weights: Tensor | None, eps: float
) -> Tensor:
    """Merge (B, N, D) or (T, D) into (B, rows, D); arguments as in `merge_tokens`, checked."""
    assignment = _assignment(out, mode, x.dtype)
    dtype, x = x.dtype, x.to(assignment.dtype)
    if weights is not None:
        weights = weights.to(assignment.dtype)
    check_members(out, weights)
    if out.cu_seqlens is not None:
        assert out.max_seqlen is not None
        x = layout.pad(x, out.cu_seqlens, out.max_seqlen)
        if weights is not None:
            weights = layout.pad(weights, out.cu_seqlens, out.max_seqlen)
    # Excluded tokens (padding, non-finite) must not enter the product as NaN.
    usable = x.isfinite().all(2) & (assignment.sum(1) > 0)
    x = torch.where(usable[:, :, None], x, 0)
    assignment = torch.where(usable[:, None], assignment, 0)
    if weights is not None:
        assignment = assignment * torch.where(usable, weights, 0)[:, None]
    mass = assignment.sum(2, keepdim=True)
    mass = mass + eps if mode == "soft" else torch.where(mass > 0, mass, 1)
    return (torch.bmm(assignment, x) / mass).to(dtype)


@own_dtype
def unmerge(tokens: Tensor, out: Clusters | HardClusters, mode: str) -> Tensor:
    """Spread (B, rows, D) to (B, N, D) or (T, D); masked tokens are 0."""
    check_members(out)
    assignment = _assignment(out, mode, tokens.dtype)
    spread = torch.bmm(assignment.mT, tokens.to(assignment.dtype)).to(tokens.dtype)
    if out.cu_seqlens is None:
        return spread
    return layout.unpad(spread, out.cu_seqlens, out.labels.shape[0])


def _assignment(out: Clusters | HardClusters, mode: str, dtype: torch.dtype) -> Tensor:
    """Return the weight (B, rows, N) of each token in each row: the mask, or 1 at the label."""
    if mode == "soft":
        masks = masks_of(out)
        if out.cu_seqlens is None:
            return masks
        assert out.max_seqlen is not None
        return layout.pad(masks.mT, out.cu_seqlens, out.max_seqlen).mT
    labels = out.labels
    if out.cu_seqlens is not None:
        assert out.max_seqlen is not None
        labels = layout.pad(labels, out.cu_seqlens, out.max_seqlen, fill=-1)
    row = torch.arange(out.num_rows, device=labels.device)
    return (labels[:, None] == row[:, None]).to(torch.promote_types(dtype, torch.float32))
