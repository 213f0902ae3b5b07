"""Kernels of unmerge: soft by products with the masks, hard by labels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.common import COUNTERS, Tokens, locate
from setok_triton.configs import (
    REST,
    coefficient_precision,
    feature_step,
    token_config,
    unmerge_config,
)
from setok_triton.mask_gradients import Merged, mask_gradients, token_weight
from setok_triton.scope import MaskLayout
from setok_triton.shares import row_total


@triton.jit
def weighted_dot(b_coef, b_x, b_out, PRECISION):
    """Return `b_out` + float32 coefficients times tokens.

    With bfloat16 tokens a coefficient keeps 16 bits: its rounded part and the rounded rest, both
    exact in the product. The bits of float16 tokens fit into tf32.
    """
    if b_x.dtype == tl.bfloat16:
        b_high = b_coef.to(tl.bfloat16)
        b_low = (b_coef - b_high.to(tl.float32)).to(tl.bfloat16)
        b_out = tl.dot(b_high, b_x, b_out)
        b_out = tl.dot(b_low, b_x, b_out)
    else:
        b_out = tl.dot(b_coef, b_x.to(tl.float32), b_out, input_precision=PRECISION)
    return b_out


@triton.jit(do_not_specialize=COUNTERS)
def unmerge_soft_fwd_kernel(
    tokens,  # (B rows, D)
    p_offsets,
    p_counts,  # (B,) int64 last row of each image
    p_masks,
    merged,  # Merged, or None
    p_out,  # (T, D)
    rows,
    L,
    parts,
    step,
    stride_image,
    stride_row,
    stride_start,
    FEW: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    REST_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write sum_c M_ci t_c for a block of tokens and `step` blocks of features.

    With `merged`, w_i M_ci / m_c takes the place of M_ci, and one more program for the block of
    tokens writes the gradients of masks and weights. FEW: there are up to BLOCK_C + REST_C rows.
    """
    programs = tl.cdiv(tl.cdiv(tokens.D, BLOCK_D), step)
    if merged is not None and merged.p_products is not None:
        programs += 1
    i_b, i_tile, start, n = locate(p_offsets, L, tl.cdiv(L, BLOCK_N) * programs)
    o_n = i_tile // programs * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    count = tl.load(p_counts + i_b).to(tl.int32)
    o_tile = i_b * stride_image + start * stride_start + o_n[:, None]
    begin = i_tile % programs * step * BLOCK_D
    end = tl.minimum(begin + step * BLOCK_D, tokens.D)
    if begin < end:
        o_c, o_rest = tl.arange(0, BLOCK_C), BLOCK_C + tl.arange(0, REST_C)
        p_rows = tokens.p_x + i_b * rows * tokens.stride_n
        p_block = p_out + (start + o_n)[:, None] * tokens.D
        b_w = None
        if merged is not None:
            b_w = token_weight(merged, start, o_n, m_n)
        p_tile, at = p_masks + o_tile, (i_b, count, rows, parts, stride_row)
        if FEW:
            b_m = mask_tile(p_tile, merged, b_w, o_c, m_n, *at)
            b_rest = mask_tile(p_tile, merged, b_w, o_rest, m_n, *at)
        for i_d in range(begin, end, BLOCK_D):
            o_d = i_d + tl.arange(0, BLOCK_D)
            b_out = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
            if FEW:
                b_t = row_tile(tokens, p_rows, o_c, count, o_d)
                b_out = weighted_dot(b_m, b_t, b_out, PRECISION)
                b_t = row_tile(tokens, p_rows, o_rest, count, o_d)
                b_out = weighted_dot(b_rest, b_t, b_out, PRECISION)
            else:
                for i_c in range(0, count + 1, BLOCK_C):
                    b_m = mask_tile(p_tile, merged, b_w, i_c + o_c, m_n, *at)
                    b_t = row_tile(tokens, p_rows, i_c + o_c, count, o_d)
                    b_out = weighted_dot(b_m, b_t, b_out, PRECISION)
            m_tile = m_n[:, None] & (o_d < tokens.D)[None, :]
            tl.store(p_block + o_d[None, :], b_out.to(p_out.dtype.element_ty), mask=m_tile)
    elif merged is not None and merged.p_products is not None:
        at = (i_b, count, rows, parts, stride_row)
        mask_gradients(p_masks, merged, o_tile, start, o_n, m_n, *at, 2 * REST_C)


@triton.jit
def row_tile(tokens, p_rows, o_c, count, o_d):
    """Return the features o_d of cluster rows o_c (C, D), 0 after the last row."""
    m_tile = (o_c <= count)[:, None] & (o_d < tokens.D)[None, :]
    p_tile = p_rows + (o_c.to(tl.int64) * tokens.stride_n)[:, None]
    return tl.load(p_tile + (o_d * tokens.stride_d)[None, :], mask=m_tile, other=0.0)


@triton.jit
def mask_tile(p_tile, merged, b_w, o_c, m_n, i_b, count, rows, parts, stride_row):
    """Return the masks (N, C) of rows o_c; with `merged`, w_i M_ci / m_c for the weights (N,)."""
    m_c = o_c <= count
    m_tile = m_n[:, None] & m_c[None, :]
    b_m = tl.load(p_tile + (o_c.to(tl.int64) * stride_row)[None, :], mask=m_tile, other=0.0)
    if merged is not None:
        b_mass = row_total(merged.p_mass, i_b, parts, rows, o_c, m_c) + merged.eps
        # A product per mask takes fewer instructions than a quotient. The power of two keeps the
        # reciprocal of a subnormal mass finite.
        b_scale = tl.where(b_mass < 2.0**-60, 2.0**64, 1.0)
        b_inverse = 1.0 / tl.where(m_c, b_mass * b_scale, 1.0)
        b_m = b_m * b_scale[None, :] * b_inverse[None, :] * b_w[:, None]
    return b_m


@triton.jit(do_not_specialize=COUNTERS)
def unmerge_hard_fwd_kernel(
    tokens,  # (B rows, D)
    p_offsets,
    p_labels,  # (T,) int64
    p_weights,  # (T,) float32 or None
    p_out,  # (T, D)
    rows,
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the cluster token of each label, times the token's weight; 0 without a label."""
    i_b, i_n, start, n = locate(p_offsets, L, tl.cdiv(L, BLOCK_N))
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    b_label = tl.load(p_labels + start + o_n, mask=m_n, other=-1)  # (N,)
    for i_d in range(0, tokens.D, BLOCK_D):
        o_d = i_d + tl.arange(0, BLOCK_D)
        m_d = (o_d < tokens.D)[None, :]
        p_rows = tokens.p_x + ((i_b * rows + b_label) * tokens.stride_n)[:, None]
        p_tile = p_rows + (o_d * tokens.stride_d)[None, :]
        b_t = tl.load(p_tile, mask=(b_label >= 0)[:, None] & m_d, other=0.0)  # (N, D)
        if p_weights is not None:
            b_w = tl.load(p_weights + start + o_n, mask=m_n, other=0.0)  # (N,)
            b_t = (b_t * b_w[:, None]).to(b_t.dtype)
        p_block = p_out + (start + o_n)[:, None] * tokens.D + o_d[None, :]
        tl.store(p_block, b_t, mask=m_n[:, None] & m_d)


def unmerge_soft(
    tokens: Tensor,
    masks: Tensor,
    counts: Tensor,
    offsets: Tensor,
    longest: int,
    total: int,
    merged: Merged | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the mixture of the cluster tokens for each token, by the masks.

    Args:
        tokens: (B, rows, D) cluster tokens, contiguous.
        masks: (B, rows or more, N), or packed (rows or more, T), float32 masks.
        counts: (B,) int64 last row of each image.
        offsets: (B + 1,) int64 offsets of the images.
        longest: maximum number of tokens of an image.
        total: number of tokens of all images.
        merged: sums that scale the masks, for the gradient of a merge, or None.
        dtype: dtype of the result; None for that of `tokens`.

    Returns:
        (total, D) mixtures.
    """
    images, rows, dim = tokens.shape
    config = unmerge_config(tokens.dtype)
    out = tokens.new_empty(total, dim, dtype=dtype)
    token_blocks = triton.cdiv(longest, config.block_m)
    feature_blocks = triton.cdiv(dim, config.block_n)
    step = feature_step(images * token_blocks, feature_blocks)
    programs = triton.cdiv(feature_blocks, step) + (
        merged is not None and merged.p_products is not None
    )
    if images * token_blocks * programs:
        unmerge_soft_fwd_kernel[(images * token_blocks * programs,)](
            *(Tokens.of(tokens.flatten(0, 1)), offsets, counts, masks, merged, out),
            *(rows, longest, 0 if merged is None else merged.p_mass.shape[1], step),
            *MaskLayout.of(masks),
            FEW=rows <= config.block_d + REST,
            PRECISION=coefficient_precision(tokens.dtype),
            REST_C=REST,
            **config.launch("BLOCK_N", "BLOCK_D", "BLOCK_C"),
        )
    return out


def unmerge_hard(
    tokens: Tensor,
    labels: Tensor,
    offsets: Tensor,
    longest: int,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the token (T, D) of each label (T,), from (B, rows, D), times the weights (T,)."""
    images, rows, dim = tokens.shape
    config = token_config(tokens.dtype)
    out = tokens.new_empty(labels.shape[0], dim)
    blocks = triton.cdiv(longest, config.block_n)
    if images * blocks * dim:
        unmerge_hard_fwd_kernel[(images * blocks,)](
            *(Tokens.of(tokens.flatten(0, 1)), offsets, labels, weights, out, rows, longest),
            **config.launch(),
        )
    return out
