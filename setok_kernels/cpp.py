"""The compiled CPU backend: decisions and values in C++, gradients through the reference.

Where a gradient is wanted, C++ decides and the reference evaluates the decisions.
"""

import torch
from torch import Tensor

from setok_kernels import _native, reference
from setok_kernels.config import ALPHAS, KERNELS, LEARNABLE, ClusterConfig
from setok_kernels.gradient import masks_of, needs_gradient
from setok_kernels.result import Clusters, Decisions

_native.load()
_ops = torch.ops.setok_cpu

# Images of more tokens keep no N x N matrix: the inner products are made twice instead.
DENSE_LIMIT = 3072


def cluster(
    x: Tensor,
    valid: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    config: ClusterConfig,
    decisions: Decisions | None,
) -> Clusters:
    """Cluster padded or packed tokens; the arguments are those of `reference.cluster`."""
    learnable = [getattr(config, name) for name in LEARNABLE]
    if needs_gradient(x, *learnable):
        if decisions is None:
            decisions = _cluster(x.detach(), valid, cu_seqlens, config, None).decisions
        return reference.cluster(x, valid, cu_seqlens, max_seqlen, config, decisions)
    return _cluster(x, valid, cu_seqlens, config, decisions)


def _cluster(x, valid, cu_seqlens, config, decisions) -> Clusters:
    known = (None,) * 4
    if decisions is not None:
        known = (decisions.knn, decisions.parent, decisions.seeds, decisions.counts)
        known = tuple(t.contiguous() for t in known)
    if config.distance_scale == "variance":
        scale, factor = 0, 0.0
    else:
        scale = 1
        factor = 1 / x.shape[-1] if config.distance_scale == "dim" else config.distance_scale
    with torch.no_grad():
        masks, counts, labels, density, delta, score, knn, parent, seeds = _ops.cluster(
            x.contiguous(),
            None if valid is None else valid.contiguous(),
            None if cu_seqlens is None else cu_seqlens.contiguous(),
            *known,
            config.k,
            config.max_clusters,
            KERNELS.index(config.kernel),
            ALPHAS.index(config.alpha),
            float(config.bandwidth),
            float(config.beta),
            float(config.temperature),
            float(config.offset),
            scale,
            float(factor),
            config.score_norm == "max",
            config.distinct_seeds,
            config.include_self,
            float(config.stop_residual),
            float(config.min_mass),
            DENSE_LIMIT,
        )
    if decisions is None:
        decisions = Decisions(knn, parent, seeds, counts)
    return Clusters(masks, decisions.counts, labels, density, delta, score, decisions)


def merge(x: Tensor, out: Clusters, mode: str, weights: Tensor | None, eps: float) -> Tensor:
    """Tokens to clusters; the arguments are those of `reference.merge`."""
    if needs_gradient(x, weights, *masks_of(out, mode)):
        return reference.merge(x, out, mode, weights, eps)
    dtype = out.masks.dtype
    if weights is not None:
        weights = weights.detach().to(dtype).contiguous()
    tokens, labels = x.detach().to(dtype).contiguous(), out.labels.contiguous()
    if mode == "hard":
        merged = _ops.merge_hard(tokens, labels, weights, _offsets(out), out.num_rows)
    else:
        masks = out.masks.detach().contiguous()
        merged = _ops.merge_soft(tokens, masks, labels, weights, _offsets(out), eps)
    return merged.to(x.dtype)


def unmerge(tokens: Tensor, out: Clusters, mode: str) -> Tensor:
    """Clusters back to tokens; the arguments are those of `reference.unmerge`."""
    if needs_gradient(tokens, *masks_of(out, mode)):
        return reference.unmerge(tokens, out, mode)
    values, labels = tokens.detach(), out.labels.contiguous()
    if mode == "hard":
        return _ops.unmerge_hard(values.contiguous(), labels, _offsets(out))
    masks = out.masks.detach().contiguous()
    spread = _ops.unmerge_soft(values.to(masks.dtype).contiguous(), masks, labels, _offsets(out))
    return spread.to(tokens.dtype)


def assign(x: Tensor, valid: Tensor | None, centres: Tensor) -> Tensor:
    """Number of the nearest centre of every token, ties lowest number; a centre is its own.

    Args:
        x: (B, N, D) float32 or float64 (others are taken to float32), finite.
        valid: (B, N) bool or None.
        centres: (B, C) int64 tokens, -1 where there is none.

    Returns:
        (B, N) int64, -1 for masked tokens and in images without a centre.
    """
    x = x.detach() if x.dtype == torch.float64 else x.detach().float()
    return _ops.assign(
        x.contiguous(), None if valid is None else valid.contiguous(), centres.contiguous()
    )


def _offsets(out: Clusters) -> Tensor | None:
    return None if out.cu_seqlens is None else out.cu_seqlens.contiguous()
