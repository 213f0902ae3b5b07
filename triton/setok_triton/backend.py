"""The Triton backend: decisions and values in kernels, gradients through the reference.

Where a gradient is wanted, the kernels decide and the reference evaluates the decisions. Nothing
here reads a value on the host.
"""

import torch
from torch import Tensor

from setok_kernels import reference
from setok_kernels.config import LEARNABLE, ClusterConfig
from setok_kernels.gradient import masks_of, needs_gradient
from setok_kernels.result import Clusters, Decisions
from setok_triton import assign as nearest
from setok_triton import merge as merging
from setok_triton.chunk import Chunk
from setok_triton.configs import dense_images
from setok_triton.delta import delta, parents, score
from setok_triton.density import density, neighbours
from setok_triton.distances import distances
from setok_triton.features import norms, scales
from setok_triton.scope import labels, scope
from setok_triton.stream import stream_scope

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cluster(
    x: Tensor,
    valid: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    config: ClusterConfig,
    decisions: Decisions | None,
) -> Clusters:
    """Cluster padded or packed tokens; the arguments are those of `reference.cluster`.

    Raises:
        RuntimeError: x is float64.
    """
    _check_dtype(x)
    learnable = [getattr(config, name) for name in LEARNABLE]
    with torch.no_grad():
        out = _cluster(x.detach(), valid, cu_seqlens, max_seqlen, config, decisions)
    if needs_gradient(x, *learnable):
        return reference.cluster(x, valid, cu_seqlens, max_seqlen, config, out.decisions)
    return out


def merge(x: Tensor, out: Clusters, mode: str, weights: Tensor | None, eps: float) -> Tensor:
    """Tokens to clusters; the arguments are those of `reference.merge`.

    Raises:
        RuntimeError: x or the masks are float64.
    """
    _check_dtype(x, out.masks)
    if needs_gradient(x, weights, *masks_of(out, mode)):
        return reference.merge(x, out, mode, weights, eps)
    tokens, labels = x.detach().reshape(-1, x.shape[-1]), out.labels.reshape(-1)
    if weights is not None:
        weights = weights.detach().reshape(-1).float().contiguous()
    offsets, longest = _offsets_of(out)
    if mode == "hard":
        return merging.merge_hard(tokens, labels, weights, out.num_rows, offsets, longest)
    masks = out.masks.detach().contiguous()
    return merging.merge_soft(tokens, labels, weights, masks, out.counts, offsets, longest, eps)


def unmerge(tokens: Tensor, out: Clusters, mode: str) -> Tensor:
    """Clusters back to tokens; the arguments are those of `reference.unmerge`.

    Raises:
        RuntimeError: tokens or masks are float64.
    """
    _check_dtype(tokens, out.masks)
    if needs_gradient(tokens, *masks_of(out, mode)):
        return reference.unmerge(tokens, out, mode)
    values, labels = tokens.detach().contiguous(), out.labels
    offsets, longest = _offsets_of(out)
    if mode == "hard":
        spread = merging.unmerge_hard(values, labels.reshape(-1), offsets, longest)
    else:
        masks = out.masks.detach().contiguous()
        spread = merging.unmerge_soft(values, masks, out.counts, offsets, longest, labels.numel())
    return spread.view(*labels.shape, tokens.shape[-1])


def assign(x: Tensor, valid: Tensor | None, centres: Tensor) -> Tensor:
    """Number of the nearest centre of every token, ties lowest number; a centre is its own.

    Args:
        x: (B, N, D) float32, bfloat16 or float16; finite.
        valid: (B, N) bool or None.
        centres: (B, C) int64 tokens, -1 where there is none.

    Returns:
        (B, N) int64, -1 for masked tokens and in images without a centre.

    Raises:
        RuntimeError: x is float64.
    """
    _check_dtype(x)
    images, tokens = x.shape[:2]
    offsets = torch.arange(images + 1, device=x.device) * tokens
    x, flags = x.detach().reshape(-1, x.shape[2]), _flags(valid)
    return nearest.assign(x, flags, centres, offsets, tokens).view(images, tokens)


def _flags(valid: Tensor | None) -> Tensor | None:
    return None if valid is None else valid.reshape(-1).contiguous().view(torch.uint8)


def _check_dtype(*tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise RuntimeError(
                "backend='triton' cannot run: takes float32, bfloat16 and float16, "
                f"got {tensor.dtype}; use backend='reference'"
            )


def _offsets_of(out: Clusters) -> tuple[Tensor, int]:
    """Where each image starts among all tokens, and the most tokens of one."""
    if out.cu_seqlens is not None:
        return out.cu_seqlens.long(), out.max_seqlen
    images, tokens = out.labels.shape
    return torch.arange(images + 1, device=out.labels.device) * tokens, tokens


def _cluster(x, valid, cu_seqlens, max_seqlen, config, decisions) -> Clusters:
    steps, replay = config.max_clusters, decisions is not None
    if cu_seqlens is None:
        leading, longest = tuple(x.shape[:2]), x.shape[1]
        offsets = torch.arange(leading[0] + 1, device=x.device) * longest
        masks = x.new_empty(leading[0], steps + 1, longest, dtype=torch.float32)
    else:
        leading, longest = (x.shape[0],), max_seqlen
        offsets = cu_seqlens.long()
        masks = x.new_empty(steps + 1, x.shape[0], dtype=torch.float32)
    x = x.reshape(-1, x.shape[-1])
    total, images = x.shape[0], offsets.shape[0] - 1
    rho, dlt, s, left = (x.new_empty(total, dtype=torch.float32) for _ in range(4))
    label = offsets.new_empty(total)
    if replay:
        knn, parent = (t.reshape(total, -1).contiguous() for t in (decisions.knn, decisions.parent))
        seeds, counts = decisions.seeds.contiguous(), decisions.counts.contiguous()
    else:
        knn, parent = offsets.new_empty(total, config.k), offsets.new_empty(total)
        seeds, counts = offsets.new_full((images, steps), -1), offsets.new_zeros(images)
    if total > 0:
        flags = _flags(valid)
        whole = Chunk(*_scales(x, flags, offsets, longest, config), longest)
        norm = norms(x, offsets, longest, whole.factor)
        learnable = torch.stack([_on_device(getattr(config, n), rho) for n in LEARNABLE])
        size = dense_images(images, longest)
        for first in range(0, images, size or images):
            cut = slice(first, first + (size or images))
            chunk = whole.part(first, min(size or images, images - first))
            if size:
                chunk = chunk.keeping(distances(x, norm, chunk))
            if not replay:
                neighbours(x, norm, chunk, knn, config.include_self)
            density(x, chunk, knn, rho)
            if not replay:
                parents(x, norm, chunk, rho, parent)
            delta(x, chunk, parent, dlt)
            known = seeds[cut] if replay else None
            score(chunk.offsets, rho, dlt, known, s, config.score_norm == "max")
            part = masks[cut] if cu_seqlens is None else masks
            arguments = (chunk, s, learnable, config, part, left, seeds[cut], counts[cut], replay)
            if size:
                scope(*arguments)
            else:
                stream_scope(x, *arguments)
            labels(chunk, flags, left, seeds[cut], counts[cut], part, label)
    choices = decisions
    if not replay:
        choices = Decisions(knn.view(*leading, config.k), parent.view(leading), seeds, counts)
    per_token = (t.view(leading) for t in (label, rho, dlt, s))
    return Clusters(masks, choices.counts, *per_token, choices)


def _scales(x, flags, offsets, longest, config):
    """ok, offsets, factor, sigma, taking_part: the first fields of a `Chunk`."""
    fixed = {"variance": None, "dim": 1 / x.shape[-1]}
    sigma = config.distance_scale
    sigma = fixed[sigma] if isinstance(sigma, str) else sigma
    ok, factor, scale, taking_part = scales(x, flags, offsets, longest, sigma)
    return ok, offsets, factor, scale, taking_part


def _on_device(value, like: Tensor) -> Tensor:
    # A fill, not a copy from the host, which would wait for the device.
    if isinstance(value, Tensor):
        return value.detach().to(like)
    return like.new_full((), value)
