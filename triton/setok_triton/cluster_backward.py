"""The backward pass of the clustering: the order of its launches."""

import torch
import triton
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.common import Clusters, Images, Tokens
from setok_triton.configs import most_registers, token_config
from setok_triton.features import norms
from setok_triton.features_backward import Pulls, edges, features_bwd_kernel, pull_sums
from setok_triton.merge import unmerge_soft
from setok_triton.scope_backward import scope_backward, score_backward, seed_rows
from setok_triton.segments import sorted_by_target


def gradients(
    x: Tensor,
    chunk: Chunk,
    options,
    out: Clusters,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor]:
    """Launches everything; there is at least one token.

    Args:
        x: (T, D) tokens of all images.
        chunk: all images.
        options: the `MaskOptions`.
        out: what the forward pass had.
        grads: gradients of masks, density, delta and score, float32 in their shapes, None for 0.

    Returns:
        (T, D) gradient of x in its dtype, and (4,) float32 gradients of the learnable numbers.
    """
    grad_masks, *per_token = grads
    shape = (x.shape[0],)
    # New ones: the kernels add to them.
    grad_density, grad_delta, grad_score = (
        torch.zeros(shape, dtype=torch.float32, device=x.device)
        if grad is None
        else grad.reshape(shape).to(torch.float32, copy=True).contiguous()
        for grad in per_token
    )
    grad_learnable, pulls = torch.zeros_like(options.learnable), None
    if grad_masks is not None:
        seeds = out.p_seeds
        number = torch.arange(1, seeds.shape[1] + 1, device=x.device)
        live = torch.where(seeds >= 0, number, 0).amax(1)
        rows = torch.empty_like(out.p_masks)
        norm = norms(x, chunk.offsets, chunk.longest, chunk.factor)
        seed_rows(x, norm, chunk, seeds, live, rows)
        pull, grad_learnable = scope_backward(
            chunk,
            out,
            live,
            options,
            grad_masks.float().contiguous(),
            rows,
            grad_score,
            x.dtype,
        )
        pulls = Pulls(live, pull, *_pulls(x, chunk, seeds, live, rows))
    score_backward(chunk, out, (grad_density, grad_delta, grad_score), options.score_norm_max)
    targets, weights = edges(x, chunk, out, (grad_density, grad_delta))
    return _features(x, chunk, out.p_seeds, targets, weights, pulls), grad_learnable


def _pulls(x, chunk, seeds, live, rows):
    """Mixtures of the seeds (T, D), and sums and masses of what pulls at them."""
    safe = seeds.clamp(min=0) + chunk.offsets[:-1, None]
    safe = safe.clamp(max=x.shape[0] - 1)
    present = (seeds >= 0) & (chunk.ok[safe] != 0)
    # The power of two itself may leave the range of the dtype.
    tokens = (x[safe] * chunk.factor[:, None, None]).to(x.dtype)
    tokens = torch.where(present[:, :, None], tokens, 0)
    mixed = unmerge_soft(
        tokens, rows, live - 1, chunk.offsets, chunk.longest, x.shape[0], dtype=torch.float32
    )
    sums, mass = pull_sums(x, chunk, live, rows, seeds.shape[1])
    return mixed, mass, sums


def _features(x, chunk, seeds, targets, weights, pulls) -> Tensor:
    """Everything that pulls at each token, in one sum."""
    config, (total, dim) = token_config(x.dtype), x.shape
    grad = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    order, bounds = sorted_by_target(targets.reshape(-1), total)
    feature_blocks = triton.cdiv(dim, config.block_d)
    features_bwd_kernel[(chunk.images * chunk.longest * feature_blocks,)](
        *(Tokens.of(x), Images.of(chunk), targets, weights, order, bounds, seeds, pulls, grad),
        *(seeds.shape[1], targets.shape[1] - 1, chunk.longest, total),
        **config.launch(),
        maxnreg=most_registers(x),
    )
    return grad
