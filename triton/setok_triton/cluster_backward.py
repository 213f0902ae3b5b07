"""Backward pass of the clustering: the sequence of its launches."""

import torch
import triton
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.common import Clusters, Images, Tokens
from setok_triton.configs import max_registers, token_config
from setok_triton.features import norms
from setok_triton.features_backward import SeedTerms, edges, features_bwd_kernel, seed_sums
from setok_triton.scope_backward import scope_backward, score_backward, seed_rows
from setok_triton.segments import sorted_by_target
from setok_triton.unmerge import unmerge_soft


def gradients(
    x: Tensor,
    chunk: Chunk,
    importance: Tensor | None,
    options,
    out: Clusters,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Launch the whole backward pass; there must be at least one token.

    Args:
        x: (T, D) tokens of all images.
        chunk: all images.
        importance: (T,) weights of the scores or None.
        options: `MaskOptions` of the forward pass.
        out: decisions and values of the forward pass.
        grads: gradients of masks, density, delta and score, float32 in their shapes, None for 0.

    Returns:
        (T, D) gradient of x in its dtype, (T,) float32 gradient of the importance (None without),
        and (4,) float32 gradients of the hyper-parameters.
    """
    grad_masks, *per_token = grads
    shape = (x.shape[0],)
    # Copies, because the kernels add to them.
    grad_density, grad_delta, grad_score = (
        torch.zeros(shape, dtype=torch.float32, device=x.device)
        if grad is None
        else grad.reshape(shape).to(torch.float32, copy=True).contiguous()
        for grad in per_token
    )
    if grad_masks is None:
        grad_learnable, seed_terms = torch.zeros_like(options.learnable), None
    else:
        seeds = out.p_seeds
        number = torch.arange(1, seeds.shape[1] + 1, device=x.device)
        live = torch.where(seeds >= 0, number, 0).amax(1)
        rows = torch.empty_like(out.p_masks)
        norm = norms(x, chunk.offsets, chunk.longest, chunk.factor)
        seed_rows(x, norm, chunk, seeds, live, rows)
        total, grad_learnable = scope_backward(
            chunk,
            out,
            live,
            options,
            grad_masks.float().contiguous(),
            rows,
            grad_score,
            x.dtype,
        )
        seed_terms = SeedTerms(live, total, *_seed_terms(x, chunk, seeds, live, rows))
    grad_importance = score_backward(
        chunk, out, importance, (grad_density, grad_delta, grad_score), options.score_norm_max
    )
    targets, weights = edges(x, chunk, out, (grad_density, grad_delta))
    grad_x = _features(x, chunk, out.p_seeds, targets, weights, seed_terms)
    return grad_x, grad_importance, grad_learnable


def _seed_terms(x, chunk, seeds, live, rows):
    """Return the mixtures of the seeds (T, D), and the masses and sums of their gradients."""
    safe = seeds.clamp(min=0) + chunk.offsets[:-1, None]
    safe = safe.clamp(max=x.shape[0] - 1)
    present = (seeds >= 0) & (chunk.ok[safe] != 0)
    # Multiplied in float32: the power of two may leave the range of the dtype.
    tokens = (x[safe] * chunk.factor[:, None, None]).to(x.dtype)
    tokens = torch.where(present[:, :, None], tokens, 0)
    mixed = unmerge_soft(
        tokens, rows, live - 1, chunk.offsets, chunk.longest, x.shape[0], dtype=torch.float32
    )
    sums, mass = seed_sums(x, chunk, live, rows, seeds.shape[1])
    return mixed, mass, sums


def _features(x, chunk, seeds, targets, weights, seed_terms) -> Tensor:
    """Return the sum of all gradient contributions to each token (T, D)."""
    config, (total, dim) = token_config(x.dtype), x.shape
    grad = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    order, bounds = sorted_by_target(targets.reshape(-1), total)
    feature_blocks = triton.cdiv(dim, config.block_d)
    features_bwd_kernel[(chunk.images * chunk.longest * feature_blocks,)](
        *(Tokens.of(x), Images.of(chunk), targets, weights, order, bounds, seeds, seed_terms, grad),
        *(seeds.shape[1], targets.shape[1] - 1, chunk.longest, total),
        **config.launch(),
        maxnreg=max_registers(x),
    )
    return grad
