"""Backward pass of the clustering: the sequence of its launches."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.adjacency import adjacency
from setok_triton.chunk import Chunk
from setok_triton.common import COUNTERS, Clusters, Images, Tokens, farthest, flagged, locate
from setok_triton.configs import max_registers, token_config
from setok_triton.features import norms
from setok_triton.features_backward import features, seed_sums
from setok_triton.scope_backward import scope_backward, score_backward, seed_rows


@triton.jit(do_not_specialize=COUNTERS)
def targets_bwd_kernel(
    x,
    images,
    p_parent,  # (T,) int64
    p_target,  # (T,) int32
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the token of delta: the parent, for a token without one the farthest token."""
    at = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_N))
    i_b, i_n, start, n = at
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_ok = flagged(images.p_ok, start, o_n, m_n)
    factor = tl.load(images.p_factor + i_b)
    b_target = tl.load(p_parent + start + o_n, mask=m_ok, other=-1).to(tl.int32)  # (N,)
    # As in the forward pass: most blocks have no top token, and an image has one.
    m_top = m_ok & (b_target < 0)
    top = tl.max(tl.where(m_top, o_n, -1), axis=0)
    while top >= 0:
        _, far = farthest(x, images, at, top, factor, L, BLOCK_N, BLOCK_D)
        b_target = tl.where(o_n == top, far, b_target)
        m_top = m_top & (o_n != top)
        top = tl.max(tl.where(m_top, o_n, -1), axis=0)
    tl.store(p_target + start + o_n, b_target, mask=m_n)


def targets(x: Tensor, chunk: Chunk, parent: Tensor) -> Tensor:
    """Return the token of delta (T,) int32 of each token of x (T, D), from its parent (T,)."""
    config, target = token_config(x.dtype), parent.new_empty(x.shape[0], dtype=torch.int32)
    blocks = triton.cdiv(chunk.longest, config.block_n)
    targets_bwd_kernel[(chunk.images * blocks,)](
        *(Tokens.of(x), Images.of(chunk), parent, target, chunk.longest),
        **config.launch(),
        maxnreg=max_registers(x),
    )
    return target


def gradients(
    x: Tensor,
    chunk: Chunk,
    importance: Tensor | None,
    options,
    out: Clusters,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    norm: Tensor | None = None,
    target: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Launch the whole backward pass; there must be at least one token.

    Args:
        x: (T, D) tokens of all images.
        chunk: all images.
        importance: (T,) weights of the scores or None.
        options: `MaskOptions` of the forward pass.
        out: decisions and values of the forward pass.
        grads: gradients of masks, density, delta and score, float32 in their shapes, None for 0.
        norm: (T,) float32 squared norms of the tokens, if known.
        target: (T,) int32 token of delta of each token, if known.

    Returns:
        (T, D) gradient of x in its dtype, (T,) float32 gradient of the importance (None without),
        and (4,) float32 gradients of the hyper-parameters.
    """
    grad_masks, grad_density, grad_delta, grad_score = (
        None if grad is None else grad.float().contiguous() for grad in grads
    )
    if target is None:
        target = targets(x, chunk, out.p_parent)
    terms = None
    if grad_masks is None:
        grad_learnable = torch.zeros_like(options.learnable)
    else:
        norm = norms(x, chunk.offsets, chunk.longest, chunk.factor) if norm is None else norm
        rows = seed_rows(x, norm, chunk, out.p_seeds)
        coefs, total, grad_score, grad_learnable = scope_backward(
            chunk, out, options, grad_masks, rows, grad_score, x.dtype
        )
        terms = seed_sums(x, chunk, out.p_seeds, coefs, total)
    scores = None
    if grad_score is not None:
        scores = score_backward(chunk, out, importance, grad_score, options.score_norm_max)
    edges, grad_importance = adjacency(
        chunk,
        out,
        target,
        (grad_density, grad_delta),
        scores,
        importance,
        seeded=terms is not None,
    )
    return features(x, chunk, edges, out.p_seeds, terms), grad_importance, grad_learnable
