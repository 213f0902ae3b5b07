"""CUDA kernels of the operations `setok::…`, with the arguments of setok_kernels/ops.py.

No value is read on the host.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from setok_kernels.config import ALPHAS, KERNELS, SCALES, TRITON_DTYPES
from setok_triton import dpc_knn as peaks
from setok_triton import merge as merging
from setok_triton import merge_backward as merging_backward
from setok_triton import threshold_greedy as greedy
from setok_triton import unmerge as unmerging
from setok_triton.chunk import Chunk
from setok_triton.cluster_backward import gradients
from setok_triton.common import Clusters
from setok_triton.configs import dense_images
from setok_triton.delta import delta, score
from setok_triton.density import density, neighbours
from setok_triton.distances import distances
from setok_triton.features import norms, scales
from setok_triton.image import cluster_images
from setok_triton.parents import find_parents, settle_parents
from setok_triton.prepare import prepare
from setok_triton.rows import empty_rows
from setok_triton.scope import labels
from setok_triton.select import select
from setok_triton.stream import stream_scope
from setok_triton.workspace import Saved, workspace


@dataclass(frozen=True)
class MaskOptions:
    """Options of density, score and masks, with the hyper-parameters as a tensor."""

    kernel: str
    alpha: str
    sigma: float | None  # None: from the variance
    score_norm_max: bool
    learnable: Tensor  # (4,) float32

    @classmethod
    def of(
        cls, images: tuple[Tensor, Tensor | None, int], learnable, kernel, alpha, *numbers
    ) -> tuple["MaskOptions", Tensor]:
        """Build the options from the arguments of an operation; `images` is (x, cu_seqlens, L).

        Returns:
            Options, and the offsets of the images, which the same launch writes.
        """
        *values, scale, factor, score_norm_max = numbers
        sigma = {"variance": None, "dim": 1 / images[0].shape[-1], "number": factor}[SCALES[scale]]
        offsets, written = prepare(*images, tuple(values) if learnable is None else None)
        learnable = written if learnable is None else learnable.float()
        return cls(KERNELS[kernel], ALPHAS[alpha], sigma, score_norm_max, learnable), offsets


@dataclass(frozen=True)
class LoopOptions:
    """Options of the neighbours and the scope loop."""

    k: int
    max_clusters: int
    distinct_seeds: bool
    include_self: bool
    exact: bool  # only the budget stops the loop, and labels never name the residual
    stop_residual: float
    min_mass: float


def cluster(
    x,
    valid,
    importance,
    budget,
    cu_seqlens,
    max_seqlen,
    knn,
    parent,
    seeds,
    counts,
    learnable,
    *numbers,
) -> tuple[Tensor, ...]:
    """Run `setok::cluster`.

    Raises:
        RuntimeError: x is float64.
    """
    _check_dtype(x)
    *mask_numbers, limit = numbers
    mask_numbers, loop = mask_numbers[:-7], LoopOptions(*mask_numbers[-7:])
    k, max_clusters, include_self = loop.k, loop.max_clusters, loop.include_self
    options, offsets = MaskOptions.of((x, cu_seqlens, max_seqlen), learnable, *mask_numbers)
    replay = knn is not None
    leading, images = tuple(x.shape[:-1]), _images(x, cu_seqlens)
    longest = max_seqlen
    if cu_seqlens is None:
        masks = x.new_empty(images, max_clusters + 1, longest, dtype=torch.float32)
    else:
        masks = x.new_empty(max_clusters + 1, x.shape[0], dtype=torch.float32)
    x = x.reshape(-1, x.shape[-1])
    total = x.shape[0]
    rho, dlt, s = (x.new_empty(total, dtype=torch.float32) for _ in range(3))
    label = offsets.new_empty(total)
    saved, memory = Saved.empty(x, offsets)
    size = dense_images(images, longest, limit)
    if replay:
        made = tuple(offsets.new_empty(0) for _ in range(4))
        knn, parent = knn.reshape(total, k), parent.reshape(total)
    else:
        knn, parent = offsets.new_empty(total, k), offsets.new_empty(total)
        seeds = offsets.new_empty(images, max_clusters)
        counts = offsets.new_empty(images)
        if total == 0:
            seeds.fill_(-1)
            counts.zero_()
        made = (knn.view(*leading, k), parent.view(leading), seeds, counts)
    if total > 0:
        flags, importance = _flags(valid), _flat(importance)
        if size:
            whole, rows, norm, scratch = workspace(x, offsets, longest, size, saved)
        else:
            ok, *range_and_scale = scales(x, flags, offsets, longest, options.sigma, saved[:3])
            whole = Chunk(ok, offsets, *range_and_scale, longest)
            norm, left = saved.norm, torch.empty_like(rho)
        for cut, chunk in whole.parts(size):
            part = masks[cut] if cu_seqlens is None else masks
            known = seeds[cut], counts[cut]
            # Replayed counts settle the number of seeds.
            most = None if budget is None or replay else budget[cut]
            if size:
                distances(x, flags, chunk, rows, norm, include_self)
                chunk = chunk.keeping(rows.p_distance)
                select(chunk, rows, knn, rho, include_self, options.sigma, replay=replay)
                cluster_images(
                    *(chunk, flags, importance, most, knn, rho, options, loop, parent, dlt, s),
                    *(part, label, *known, saved.target, scratch, replay),
                )
            else:
                full, peaks, tops = empty_rows(chunk, 3)
                if replay:
                    norms(x, chunk.ok, offsets, longest, chunk.factor, norm)
                else:
                    neighbours(x, norm, chunk, knn, include_self, None, full)
                density(x, chunk, knn, rho)
                best = None
                if not replay:
                    best = find_parents(x, norm, chunk, knn, rho, parent, peaks)
                key = offsets.new_empty(total)
                settle_parents(chunk, parent, best, tops, key)
                farthest = (tops, key, saved.target)
                highest = delta(x, chunk, parent, farthest, rho, importance, dlt)
                first = seeds[cut] if replay else None
                score(chunk, rho, dlt, importance, first, highest, s, options.score_norm_max)
                stream_scope(x, norm, chunk, s, most, options, loop, part, left, *known, replay)
                labels(chunk, flags, left, *known, part, label, loop.exact)
    return masks, *(t.view(leading) for t in (label, rho, dlt, s)), *made, memory


def cluster_backward(
    x, valid, importance, cu_seqlens, max_seqlen, *rest
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `setok::cluster_backward`.

    Raises:
        RuntimeError: x is float64.
    """
    _check_dtype(x)
    forward, grads, (memory, learnable, *numbers) = Clusters(*rest[:8]), rest[8:12], rest[12:]
    options, offsets = MaskOptions.of((x, cu_seqlens, max_seqlen), learnable, *numbers)
    if x.numel() == 0:
        shape = (0,) if importance is None else importance.shape
        grad_importance = torch.zeros(shape, dtype=torch.float32, device=x.device)
        return torch.zeros_like(x), grad_importance, torch.zeros_like(options.learnable)
    tokens = x.reshape(-1, x.shape[-1])
    norm = target = None
    if memory is None:
        ok, *statistics = scales(tokens, _flags(valid), offsets, max_seqlen, options.sigma)
        chunk = Chunk(ok, offsets, *statistics, max_seqlen)
    else:
        ok, factor, sigma, norm, target = Saved.of(memory, tokens.shape[0], offsets.shape[0] - 1)
        chunk = Chunk(ok, offsets, factor, sigma, None, max_seqlen)
    grad_x, grad_importance, grad_learnable = gradients(
        tokens, chunk, _flat(importance), options, forward, grads, norm, target
    )
    if importance is None:
        grad_importance = grad_learnable.new_empty(0)
    else:
        grad_importance = grad_importance.view(importance.shape)
    return grad_x.view(x.shape), grad_importance, grad_learnable


def merge(x, masks, label, counts, weights, cu_seqlens, max_seqlen, rows, eps) -> Tensor:
    """Run `setok::merge`.

    Raises:
        RuntimeError: x or the masks are float64.
    """
    _check_dtype(x, masks)
    offsets, _ = prepare(x, cu_seqlens, max_seqlen)
    x, label = x.reshape(-1, x.shape[-1]), label.reshape(-1)
    weights = _flat(weights)
    if masks is None:
        return merging.merge_hard(x, label, weights, rows, offsets, max_seqlen)
    return merging.merge_soft(x, label, weights, masks, counts, offsets, max_seqlen, eps)


def merge_backward(
    grad, x, masks, label, counts, weights, cu_seqlens, max_seqlen, eps, need_masks
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `setok::merge_backward`.

    Raises:
        RuntimeError: x or the masks are float64.
    """
    _check_dtype(x, masks)
    offsets, _ = prepare(x, cu_seqlens, max_seqlen)
    tokens, flat = x.reshape(-1, x.shape[-1]), _flat(weights)
    found = merging_backward.merge_backward(
        grad, tokens, masks, label.reshape(-1), flat, counts, offsets, max_seqlen, eps, need_masks
    )
    grad_x, grad_masks, grad_weights = found
    return (
        grad_x.view(x.shape),
        x.new_empty(0) if grad_masks is None else grad_masks,
        x.new_empty(0) if grad_weights is None else grad_weights.view(weights.shape),
    )


def unmerge_backward(
    grad, tokens, masks, label, counts, cu_seqlens, max_seqlen, need_masks
) -> tuple[Tensor, Tensor]:
    """Run `setok::unmerge_backward`.

    Raises:
        RuntimeError: tokens or masks are float64.
    """
    _check_dtype(tokens, masks)
    (offsets, _), flat = prepare(grad, cu_seqlens, max_seqlen), grad.reshape(-1, grad.shape[-1])
    grad_tokens, grad_masks = merging_backward.unmerge_backward(
        flat, tokens, masks, label.reshape(-1), counts, offsets, max_seqlen, need_masks
    )
    return grad_tokens, tokens.new_empty(0) if grad_masks is None else grad_masks


def unmerge(tokens, masks, label, counts, cu_seqlens, max_seqlen) -> Tensor:
    """Run `setok::unmerge`.

    Raises:
        RuntimeError: tokens or masks are float64.
    """
    _check_dtype(tokens, masks)
    offsets, _ = prepare(label, cu_seqlens, max_seqlen)
    if masks is None:
        spread = unmerging.unmerge_hard(tokens, label.reshape(-1), offsets, max_seqlen)
    else:
        total = label.numel()
        spread = unmerging.unmerge_soft(tokens, masks, counts, offsets, max_seqlen, total)
    return spread.view(*label.shape, tokens.shape[-1])


def dpc_knn(x, valid, cu_seqlens, max_seqlen, noise, importance, *options) -> tuple[Tensor, ...]:
    """Run `setok::dpc_knn`.

    Raises:
        RuntimeError: x is float64.
    """
    _check_dtype(x)
    leading, (offsets, _) = x.shape[:-1], prepare(x, cu_seqlens, max_seqlen)
    tokens, weights = x.reshape(-1, x.shape[-1]), (_flat(noise), _flat(importance))
    labels, centres, counts, *values, knn, parent = peaks.dpc_knn(
        tokens, _flags(valid), cu_seqlens, offsets, max_seqlen, *weights, *options
    )
    labels, parent, *values = (t.view(leading) for t in (labels, parent, *values))
    return labels, centres, counts, *values, knn.view(*leading, knn.shape[1]), parent


def threshold_greedy(x, valid, cu_seqlens, max_seqlen, threshold) -> tuple[Tensor, Tensor, Tensor]:
    """Run `setok::threshold_greedy`.

    Raises:
        RuntimeError: x is float64.
    """
    _check_dtype(x)
    offsets, _ = prepare(x, cu_seqlens, max_seqlen)
    tokens = x.reshape(-1, x.shape[-1])
    labels, centres, counts = greedy.threshold_greedy(
        tokens, _flags(valid), offsets, max_seqlen, threshold
    )
    return labels.view(x.shape[:-1]), centres, counts


def _images(x: Tensor, cu_seqlens: Tensor | None) -> int:
    return x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def _flat(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.reshape(-1).contiguous()


def _flags(valid: Tensor | None) -> Tensor | None:
    return None if valid is None else valid.reshape(-1).contiguous().view(torch.uint8)


def _check_dtype(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None and tensor.dtype not in TRITON_DTYPES:
            raise RuntimeError(
                "backend='triton' cannot run: expected float32, bfloat16 or float16, "
                f"got {tensor.dtype}; use backend='reference'"
            )
