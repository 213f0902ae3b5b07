"""Backward pass of the clustering: the sequence of its launches."""

import torch
from torch import Tensor

from setok_triton.adjacency import adjacency
from setok_triton.chunk import Chunk
from setok_triton.common import Clusters
from setok_triton.delta import delta
from setok_triton.features import norms
from setok_triton.features_backward import features, seed_sums
from setok_triton.parents import settle_parents
from setok_triton.rows import empty_rows
from setok_triton.scope_backward import scope_backward, score_backward, seed_rows


def targets(x: Tensor, chunk: Chunk, out: Clusters) -> Tensor:
    """Return the token of delta (T,) int32 of each token of x (T, D), which nobody saved."""
    target = out.p_parent.new_empty(x.shape[0], dtype=torch.int32)
    (tops,), key = empty_rows(chunk, 1), torch.empty_like(out.p_parent)
    settle_parents(chunk, out.p_parent, None, tops, key)
    again = torch.empty_like(out.p_density)
    delta(x, chunk, out.p_parent, (tops, key, target), out.p_density, None, again)
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
        target = targets(x, chunk, out)
    terms = None
    if grad_masks is None:
        grad_learnable = torch.zeros_like(options.learnable)
    else:
        if norm is None:
            norm = norms(x, chunk.ok, chunk.offsets, chunk.longest, chunk.factor)
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
