"""Backward passes of merge and unmerge, with their own kernels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.common import COUNTERS, Images, Tokens, flagged, locate
from setok_triton.configs import token_config
from setok_triton.features import token_states
from setok_triton.mask_gradients import Merged
from setok_triton.merge import merge_hard, merge_soft
from setok_triton.row_products import row_products, row_sums
from setok_triton.segments import segments
from setok_triton.unmerge import unmerge_hard, unmerge_soft


@triton.jit(do_not_specialize=COUNTERS)
def label_products_bwd_kernel(
    tokens,  # (B rows, D); features are contiguous
    x,  # (T, D); features are contiguous
    images,
    p_labels,  # (T,) int64
    p_out,  # (T,) float32
    rows,
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write t_label(i) . x_i, 0 for unusable tokens."""
    i_b, i_n, start, n = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_N))
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_usable = flagged(images.p_ok, start, o_n, m_n)
    b_label = tl.load(p_labels + start + o_n, mask=m_usable, other=0)  # (N,)
    p_rows = tokens.p_x + ((i_b * rows + b_label) * tokens.stride_n)[:, None]
    p_block = x.p_x + ((start + o_n) * x.stride_n)[:, None]
    b_sum = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for i_d in range(0, x.D, BLOCK_D):
        o_d = i_d + tl.arange(0, BLOCK_D)
        m_tile = m_usable[:, None] & (o_d < x.D)[None, :]
        b_t = tl.load(p_rows + o_d[None, :], mask=m_tile, other=0.0).to(tl.float32)  # (N, D)
        b_x = tl.load(p_block + o_d[None, :], mask=m_tile, other=0.0).to(tl.float32)  # (N, D)
        b_sum += b_t * b_x
    tl.store(p_out + start + o_n, tl.sum(b_sum, axis=1), mask=m_n)


@triton.jit(do_not_specialize=COUNTERS)
def label_sums_bwd_kernel(
    p_products,  # (T,) float32 or None
    p_weights,  # (T,) float32
    p_order,
    p_bounds,
    p_mass,  # (B, rows) float32
    p_mean,  # (B, rows) float32
    rows,
    BLOCK_N: tl.constexpr,
):
    """Write the mass of the members of one label, 1 without members, and their mean product."""
    i_q = tl.program_id(0).to(tl.int64)
    p_bound = p_bounds + i_q // rows * (rows + 1) + i_q % rows
    end = tl.load(p_bound + 1)
    b_mass = tl.zeros((BLOCK_N,), dtype=tl.float32)
    b_mean = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for i_n in range(tl.load(p_bound), end, BLOCK_N):
        o_member = i_n + tl.arange(0, BLOCK_N)
        m_n = o_member < end
        o_n = tl.load(p_order + o_member, mask=m_n, other=0)  # (N,)
        b_w = tl.load(p_weights + o_n, mask=m_n, other=0.0)  # (N,)
        b_mass += b_w
        if p_products is not None:
            b_mean += b_w * tl.load(p_products + o_n, mask=m_n, other=0.0)
    mass = tl.sum(b_mass, axis=0)
    mass = tl.where(mass > 0, mass, 1.0)
    tl.store(p_mass + i_q, mass)
    tl.store(p_mean + i_q, tl.sum(b_mean, axis=0) / mass)


def merge_backward(
    grad: Tensor,
    x: Tensor,
    masks: Tensor | None,
    labels: Tensor,
    weights: Tensor | None,
    counts: Tensor,
    offsets: Tensor,
    longest: int,
    eps: float,
    need_masks: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of `merge_soft`, or of `merge_hard` without masks.

    Args:
        grad: (B, rows, D) gradient of the output, in the dtype of x.
        x: (T, D) tokens of all images.
        masks: (B, rows, N), or packed (rows, T), float32 masks; None when hard.
        labels: (T,) int64 labels, -1 for masked tokens.
        weights: (T,) float32 weights or None.
        counts: (B,) int64 row of the residual.
        offsets: (B + 1,) int64 offsets of the images.
        longest: maximum number of tokens of an image.
        eps: constant added to the sum of the weights when soft.
        need_masks: flag: compute the gradient of the masks.

    Returns:
        (T, D) gradient of x in its dtype; float32 gradient of the masks, 0 in the rows after the
        residual, or None; float32 gradient of the weights, or None.
    """
    grad, x = grad.contiguous(), x.contiguous()
    if masks is None:
        usable, _ = token_states(x, (labels >= 0).view(torch.uint8), offsets, longest)
        flags = usable != 0
        weight = flags.float() if weights is None else torch.where(flags, weights, 0)
        return _merge_hard_backward(
            grad, x, labels, weight, usable, offsets, longest, weights is not None
        )
    masks, keep = masks.contiguous(), need_masks or weights is not None
    sums = row_sums(x, masks, weights, grad.shape[0], longest)
    grad_masks = row_products(grad, x, labels, masks, counts, offsets, longest, sums, keep)
    grad_weights = None if weights is None else torch.empty_like(weights)
    totals = (sums.p_ok, sums.p_mass, sums.p_mean)
    merged = Merged(weights, *totals, grad_masks, grad_weights, eps)
    grad_x = unmerge_soft(grad, masks, counts, offsets, longest, x.shape[0], merged)
    return grad_x, grad_masks if need_masks else None, grad_weights


def _merge_hard_backward(grad, x, labels, weight, usable, offsets, longest, weighted):
    images, rows, _ = grad.shape
    config, blocks = token_config(x.dtype), triton.cdiv(longest, token_config(x.dtype).block_n)
    product = torch.zeros_like(weight)
    if weighted and images * blocks:
        label_products_bwd_kernel[(images * blocks,)](
            *(Tokens.of(grad.flatten(0, 1)), Tokens.of(x), Images(offsets, usable)),
            *(labels, product, rows, longest),
            **config.launch(),
        )
    order, bounds = segments(labels, offsets, rows)
    mass, mean = (weight.new_empty(images, rows) for _ in range(2))
    if images * rows:
        label_sums_bwd_kernel[(images * rows,)](
            *(product if weighted else None, weight, order, bounds, mass, mean, rows),
            BLOCK_N=256,
        )
    token = torch.arange(labels.shape[0], device=labels.device)
    row = torch.searchsorted(offsets[1:], token, right=True) * rows + labels.clamp(min=0)
    mass = mass.flatten()[row] if images else weight
    grad_x = unmerge_hard(grad, labels, offsets, longest, weight / mass)
    if not weighted:
        return grad_x, None, None
    mean = mean.flatten()[row] if images else weight
    return grad_x, None, torch.where(usable != 0, (product - mean) / mass, 0)


def unmerge_backward(
    grad: Tensor,
    tokens: Tensor,
    masks: Tensor | None,
    labels: Tensor,
    counts: Tensor,
    offsets: Tensor,
    longest: int,
    need_masks: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of `unmerge_soft`, or of `unmerge_hard` without masks.

    Args:
        grad: (T, D) gradient of the output, in the dtype of the tokens.
        tokens: (B, rows, D) cluster tokens.
        masks: (B, rows, N), or packed (rows, T), float32 masks; None when hard.
        labels: (T,) int64 labels, -1 for masked tokens.
        counts: (B,) int64 row of the residual.
        offsets: (B + 1,) int64 offsets of the images.
        longest: maximum number of tokens of an image.
        need_masks: flag: compute the gradient of the masks.

    Returns:
        (B, rows, D) gradient of the tokens in their dtype; float32 gradient of the masks, 0 in the
        rows after the residual and at masked tokens, or None.
    """
    grad = grad.contiguous()
    if masks is None:
        rows = tokens.shape[1]
        return merge_hard(grad, labels, None, rows, offsets, longest, means=False), None
    masks, grad_masks = masks.contiguous(), None
    if need_masks:
        tokens = tokens.contiguous()
        grad_masks = row_products(tokens, grad, labels, masks, counts, offsets, longest)
    sums = merge_soft(grad, labels, None, masks, counts, offsets, longest, 0.0, means=False)
    return sums, grad_masks
