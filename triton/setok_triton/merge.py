"""Kernels of merge: soft by products with the shares of the tokens, hard by labels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.common import COUNTERS, Tokens, flagged, locate
from setok_triton.configs import (
    REST,
    coefficient_precision,
    shares_config,
    token_config,
)
from setok_triton.features import token_states
from setok_triton.segments import segments
from setok_triton.shares import row_total, shares_of


@triton.jit(do_not_specialize=COUNTERS)
def merge_soft_fwd_kernel(
    x,
    shares,
    p_offsets,
    p_counts,  # (B,) int64
    p_out,  # (B, rows, D)
    rows,
    L,
    parts,
    eps,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    REST_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write sum_i s_ci x_i for BLOCK_C + REST_C rows and a block of features.

    With masses it is divided by sum_i s_ci + eps.
    """
    feature_blocks = tl.cdiv(x.D, BLOCK_D)
    row_blocks = tl.cdiv(rows, BLOCK_C + REST_C)
    i_b, i_tile, start, n = locate(p_offsets, L, row_blocks * feature_blocks)
    i_c = i_tile // feature_blocks * (BLOCK_C + REST_C)
    o_d = i_tile % feature_blocks * BLOCK_D + tl.arange(0, BLOCK_D)  # (D,)
    m_d = o_d < x.D
    # Rows after the residual are 0.
    count = tl.load(p_counts + i_b).to(tl.int32)
    PARTS: tl.constexpr = 2 if shares.p_parts.dtype.element_ty == tl.bfloat16 else 1
    live = (count + 1 - i_c) * PARTS
    o_s, o_rest = tl.arange(0, PARTS * BLOCK_C), PARTS * BLOCK_C + tl.arange(0, PARTS * REST_C)
    m_s, m_rest = (o_s < live)[:, None], (o_rest < live)[:, None]
    p_parts = shares.p_parts + (i_b * rows + i_c) * PARTS * shares.pitch
    o_s, o_rest = (o_s * shares.pitch)[:, None], (o_rest * shares.pitch)[:, None]
    p_columns = x.p_x + (o_d.to(tl.int64) * x.stride_d)[None, :]
    # Features by rows: a product on tensor cores may have few columns, but not few rows. Without
    # them the transposed operands would have bank conflicts.
    PLAIN: tl.constexpr = PARTS == 1 and PRECISION == "ieee"
    if PLAIN:
        b_out = tl.zeros((BLOCK_C, BLOCK_D), dtype=tl.float32)
        b_rest = tl.zeros((REST_C, BLOCK_D), dtype=tl.float32)
    else:
        b_out = tl.zeros((BLOCK_D, PARTS * BLOCK_C), dtype=tl.float32)
        b_rest = tl.zeros((BLOCK_D, PARTS * REST_C), dtype=tl.float32)
    for i_n in range(0, tl.where(i_c <= count, n, 0), BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = flagged(shares.p_ok, start, o_n, o_n < n)
        p_block = p_columns + ((start + o_n) * x.stride_n)[:, None]
        b_x = tl.load(p_block, mask=m_n[:, None] & m_d[None, :], other=0.0)  # (N, D)
        b_s = tl.load(p_parts + (o_s + o_n[None, :]), mask=m_s, other=0.0)  # (C, N)
        b_s_rest = tl.load(p_parts + (o_rest + o_n[None, :]), mask=m_rest, other=0.0)  # (rest, N)
        b_x = b_x.to(b_s.dtype)
        if PLAIN:
            b_out = tl.dot(b_s, b_x, b_out, input_precision=PRECISION)
            b_rest = tl.dot(b_s_rest, b_x, b_rest, input_precision=PRECISION)
        else:
            b_out = tl.dot(tl.trans(b_x), tl.trans(b_s), b_out, input_precision=PRECISION)
            b_rest = tl.dot(tl.trans(b_x), tl.trans(b_s_rest), b_rest, input_precision=PRECISION)
    if PLAIN:
        b_out, b_rest = tl.trans(b_out), tl.trans(b_rest)
    b_out = tl.sum(tl.reshape(b_out, (BLOCK_D, BLOCK_C, PARTS)), axis=2)
    b_rest = tl.sum(tl.reshape(b_rest, (BLOCK_D, REST_C, PARTS)), axis=2)
    p_columns = p_out + i_b * rows * x.D + o_d[:, None]
    o_c, o_rest = i_c + tl.arange(0, BLOCK_C), i_c + BLOCK_C + tl.arange(0, REST_C)
    store_rows(p_columns, b_out, shares, i_b, o_c, m_d, count, rows, x.D, parts, eps)
    store_rows(p_columns, b_rest, shares, i_b, o_rest, m_d, count, rows, x.D, parts, eps)


@triton.jit
def store_rows(p_columns, b_out, shares, i_b, o_c, m_d, count, rows, D, parts, eps):
    """Store sums (D, C), divided by their mass if any, and 0 after the residual."""
    m_c = o_c <= count
    if shares.p_mass is not None:
        b_mass = row_total(shares.p_mass, i_b, parts, rows, o_c, m_c) + eps
        b_out = tl.div_rn(b_out, b_mass[None, :])
    b_out = tl.where(m_c[None, :], b_out, 0.0).to(p_columns.dtype.element_ty)
    p_tile = p_columns + (o_c.to(tl.int64) * D)[None, :]
    tl.store(p_tile, b_out, mask=(o_c < rows)[None, :] & m_d[:, None])


@triton.jit(do_not_specialize=COUNTERS)
def merge_hard_fwd_kernel(
    x,
    p_usable,  # (T,) int8
    p_weights,  # (T,) float32 or None
    p_order,  # (T,) int64 tokens of all images, by image and label
    p_bounds,  # (B (rows + 1) + 1,) int64 first member of each label
    p_out,  # (B, rows, D)
    rows,
    MEANS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the weighted mean or sum of the members of one cluster, for a block of features."""
    # Masked tokens have a segment of their own after the rows of an image.
    feature_blocks = tl.cdiv(x.D, BLOCK_D)
    i_q = (tl.program_id(0) // feature_blocks).to(tl.int64)
    i_segment = i_q // rows * (rows + 1) + i_q % rows
    begin = tl.load(p_bounds + i_segment)
    end = tl.load(p_bounds + i_segment + 1)
    o_d = tl.program_id(0) % feature_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < x.D
    b_sum = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    b_mass = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for i_n in range(begin, end, BLOCK_N):
        o_member = i_n + tl.arange(0, BLOCK_N)
        m_n = o_member < end
        o_n = tl.load(p_order + o_member, mask=m_n, other=0)  # (N,) members
        m_n = flagged(p_usable, 0, o_n, m_n)
        b_w = m_n.to(tl.float32)
        if p_weights is not None:
            b_w = tl.load(p_weights + o_n, mask=m_n, other=0.0)  # (N,)
        p_block = x.p_x + (o_n * x.stride_n)[:, None] + (o_d.to(tl.int64) * x.stride_d)[None, :]
        b_x = tl.load(p_block, mask=m_n[:, None] & m_d[None, :], other=0.0)  # (N, D)
        b_sum += b_w[:, None] * b_x.to(tl.float32)
        b_mass += b_w
    b_out = tl.sum(b_sum, axis=0)
    if MEANS:
        mass = tl.sum(b_mass, axis=0)
        b_out = tl.div_rn(b_out, tl.where(mass > 0, mass, 1.0))
    tl.store(p_out + i_q * x.D + o_d, b_out.to(p_out.dtype.element_ty), mask=m_d)


def merge_soft(
    x: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    masks: Tensor,
    counts: Tensor,
    offsets: Tensor,
    longest: int,
    eps: float,
    means: bool = True,
) -> Tensor:
    """Return the means of the tokens, weighted by the masks.

    Args:
        x: (T, D) tokens of all images.
        labels: (T,) int64 labels, -1 for masked tokens.
        weights: (T,) float32 weights of the tokens or None.
        masks: (B, rows, N), or packed (rows, T), float32 masks.
        counts: (B,) int64 row of the residual.
        offsets: (B + 1,) int64 offsets of the images.
        longest: maximum number of tokens of an image.
        eps: constant added to the sum of the weights.
        means: True for means, False for sums, which include non-finite tokens.

    Returns:
        (B, rows, D) in the dtype of `x`.
    """
    images, rows, dim = counts.shape[0], masks.shape[-2], x.shape[1]
    config = shares_config(x.dtype)
    out = x.new_empty(images, rows, dim)
    if not longest:
        return out.zero_()
    if images * dim:
        shares, parts = shares_of(x, labels, weights, masks, counts, offsets, longest, means)
        # Parts of rows are columns of a product.
        rest = REST // shares.p_parts.shape[2]
        row_blocks = triton.cdiv(rows, config.block_m + rest)
        feature_blocks = triton.cdiv(dim, config.block_n)
        merge_soft_fwd_kernel[(images * row_blocks * feature_blocks,)](
            *(Tokens.of(x), shares, offsets, counts, out, rows, longest, parts, eps),
            PRECISION=coefficient_precision(x.dtype),
            REST_C=rest,
            **config.launch("BLOCK_C", "BLOCK_D", "BLOCK_N"),
        )
    return out


def merge_hard(
    x: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    rows: int,
    offsets: Tensor,
    longest: int,
    means: bool = True,
) -> Tensor:
    """Return the means of the members of each label; arguments as in `merge_soft`."""
    images, dim = offsets.shape[0] - 1, x.shape[1]
    config = token_config(x.dtype)
    out = x.new_empty(images, rows, dim)
    usable = _usable(x, labels, offsets, longest, means)
    order, bounds = segments(labels, offsets, rows)
    feature_blocks = triton.cdiv(dim, config.block_d)
    if images * feature_blocks:
        merge_hard_fwd_kernel[(images * rows * feature_blocks,)](
            *(Tokens.of(x), usable, weights, order, bounds, out, rows),
            MEANS=means,
            **config.launch(),
        )
    return out


def _usable(x, labels, offsets, longest, finite) -> Tensor:
    labelled = labels >= 0
    if not finite:
        return labelled.view(torch.int8)
    return token_states(x, labelled.view(torch.uint8), offsets, longest)[0]
