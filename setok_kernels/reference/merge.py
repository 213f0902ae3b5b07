"""Tokens of a cluster become one token (merge), and one token goes back to all (unmerge)."""

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
    """(B, N, D) or (T, D) to (B, rows, D); the arguments are those of `merge_tokens`, checked."""
    share = _assignment(out, mode, x.dtype)
    dtype, x = x.dtype, x.to(share.dtype)
    if weights is not None:
        weights = weights.to(share.dtype)
    check_members(out, weights)
    if out.cu_seqlens is not None:
        assert out.max_seqlen is not None
        x = layout.pad(x, out.cu_seqlens, out.max_seqlen)
        if weights is not None:
            weights = layout.pad(weights, out.cu_seqlens, out.max_seqlen)
    # What no cluster may use (padding, non-finite tokens) must not reach the product as NaN.
    usable = x.isfinite().all(2) & (share.sum(1) > 0)
    x = torch.where(usable[:, :, None], x, 0)
    share = torch.where(usable[:, None], share, 0)
    if weights is not None:
        share = share * torch.where(usable, weights, 0)[:, None]
    mass = share.sum(2, keepdim=True)
    mass = mass + eps if mode == "soft" else torch.where(mass > 0, mass, 1)
    return (torch.bmm(share, x) / mass).to(dtype)


@own_dtype
def unmerge(tokens: Tensor, out: Clusters | HardClusters, mode: str) -> Tensor:
    """(B, rows, D) to (B, N, D) or (T, D): the transposed assignment; 0 where masked."""
    check_members(out)
    share = _assignment(out, mode, tokens.dtype)
    spread = torch.bmm(share.mT, tokens.to(share.dtype)).to(tokens.dtype)
    if out.cu_seqlens is None:
        return spread
    return layout.unpad(spread, out.cu_seqlens, out.labels.shape[0])


def _assignment(out: Clusters | HardClusters, mode: str, dtype: torch.dtype) -> Tensor:
    """(B, rows, N) share of each token in each row: the masks, or 1 at the token's label."""
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
