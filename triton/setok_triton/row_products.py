"""Kernel of the inner products of cluster rows and tokens, the gradient of soft assignments."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.common import COUNTERS, Tokens, locate
from setok_triton.configs import REST, dot_precision, products_config
from setok_triton.scope import MaskLayout
from setok_triton.shares import finite


class RowSums(NamedTuple):
    """Sums over each block of tokens, of the shares s = w M of a merge, for its gradient."""

    p_masks: Tensor  # in the layout of the products
    p_weights: Tensor | None  # (T,) float32
    p_ok: Tensor  # (T,) int8: labelled and finite tokens, the only ones in the sums
    p_mass: Tensor  # (B, blocks, rows) float32 sums of s_ci
    p_mean: Tensor  # (B, blocks, rows) float32 sums of s_ci E_ci


@triton.jit(do_not_specialize=COUNTERS)
def row_products_bwd_kernel(
    tokens,  # (B rows, D)
    x,
    sums,  # RowSums or None
    p_offsets,
    p_labels,  # (T,) int64, -1 for masked tokens
    p_counts,  # (B,) int64
    p_out,  # (rows, ...) float32 rows stride_row apart
    rows,
    L,
    stride_image,
    stride_row,
    stride_start,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    REST_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write E_ci = t_c . x_i for a block of tokens and one of rows, and its part of the sums.

    E is 0 in rows after the residual and at unusable tokens: those without a label, and those with
    a non-finite feature if there are sums.
    """
    # One row less than the tiles have: the last one multiplies the tokens by 0, which shows the
    # non-finite ones.
    ROWS: tl.constexpr = BLOCK_C + REST_C - 1
    token_blocks = tl.cdiv(L, BLOCK_N)
    i_b, i_tile, start, n = locate(p_offsets, L, tl.cdiv(rows, ROWS) * token_blocks)
    i_c, i_n = i_tile // token_blocks * ROWS, i_tile % token_blocks
    o_c, o_rest = i_c + tl.arange(0, BLOCK_C), i_c + BLOCK_C + tl.arange(0, REST_C)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_ok = m_n & (tl.load(p_labels + start + o_n, mask=m_n, other=-1) >= 0)
    if sums is not None and PRECISION == "tf32x3":
        # Rounding to tf32 takes the largest finite numbers to infinity.
        m_ok = finite(x, start, o_n, m_ok, BLOCK_D)
    count = tl.load(p_counts + i_b).to(tl.int32)
    m_c, m_rest = o_c <= count, (o_rest <= count) & (o_rest < i_c + ROWS)
    # The features of both are contiguous (stride 1).
    o_d = tl.arange(0, BLOCK_D)
    p_columns = x.p_x + ((start + o_n) * x.stride_n)[:, None] + o_d[None, :]
    p_tokens = tokens.p_x + i_b * rows * tokens.stride_n + o_d[:, None]
    p_rows = p_tokens + (o_c * tokens.stride_n)[None, :]
    p_rest = p_tokens + (o_rest * tokens.stride_n)[None, :]
    # Without tensor cores the operands have fewer bank conflicts the other way round.
    PLAIN: tl.constexpr = x.p_x.dtype.element_ty == tl.float32 and PRECISION == "ieee"
    if PLAIN:
        b_dot = tl.zeros((BLOCK_C, BLOCK_N), dtype=tl.float32)
        b_rest = tl.zeros((REST_C, BLOCK_N), dtype=tl.float32)
    else:
        b_dot = tl.zeros((BLOCK_N, BLOCK_C), dtype=tl.float32)
        b_rest = tl.zeros((BLOCK_N, REST_C), dtype=tl.float32)
    for i_d in range(0, tl.where(i_c <= count, x.D, 0), BLOCK_D):
        m_d = i_d + o_d < x.D
        b_x = tl.load(p_columns + i_d, mask=m_ok[:, None] & m_d[None, :], other=0.0)  # (N, D)
        b_t = tl.load(p_rows + i_d, mask=m_c[None, :] & m_d[:, None], other=0.0)  # (D, C)
        b_t_rest = tl.load(p_rest + i_d, mask=m_rest[None, :] & m_d[:, None], other=0.0)
        if PLAIN:
            b_dot = tl.dot(tl.trans(b_t), tl.trans(b_x), b_dot, input_precision=PRECISION)
            b_rest = tl.dot(tl.trans(b_t_rest), tl.trans(b_x), b_rest, input_precision=PRECISION)
        else:
            b_dot = tl.dot(b_x, b_t, b_dot, input_precision=PRECISION)
            b_rest = tl.dot(b_x, b_t_rest, b_rest, input_precision=PRECISION)
    if PLAIN:
        b_dot, b_rest = tl.trans(b_dot), tl.trans(b_rest)
    if sums is not None:
        if PRECISION != "tf32x3":
            # NaN instead of 0 if a feature of the token is not finite.
            m_zero = (o_rest == i_c + ROWS)[None, :]
            m_ok = m_ok & (tl.sum(tl.where(m_zero, b_rest, 0.0), axis=1) == 0.0)
        if i_c == 0:
            tl.store(sums.p_ok + start + o_n, m_ok.to(tl.int8), mask=m_n)
    o_tile = i_b * stride_image + start * stride_start + o_n[:, None]
    o_rows = o_tile + (o_c.to(tl.int64) * stride_row)[None, :]
    o_rest_rows = o_tile + (o_rest.to(tl.int64) * stride_row)[None, :]
    if p_out is not None:
        m_main, m_last = o_c < rows, (o_rest < rows) & (o_rest < i_c + ROWS)
        b_dot = tl.where(m_ok[:, None], b_dot, 0.0)
        b_rest = tl.where(m_ok[:, None], b_rest, 0.0)
        tl.store(p_out + o_rows, b_dot, mask=m_n[:, None] & m_main[None, :])
        tl.store(p_out + o_rest_rows, b_rest, mask=m_n[:, None] & m_last[None, :])
    if sums is not None:
        # The sums read the products in the layout of the masks.
        tl.debug_barrier()
        b_w = m_ok.to(tl.float32)
        if sums.p_weights is not None:
            b_w = tl.load(sums.p_weights + start + o_n, mask=m_ok, other=0.0)  # (N,)
        o_part = (i_b * token_blocks + i_n) * rows
        add_rows(sums, p_out, o_rows, b_w, m_ok, o_part + o_c, m_c)
        add_rows(sums, p_out, o_rest_rows, b_w, m_ok, o_part + o_rest, m_rest)


@triton.jit
def add_rows(sums, p_products, o_tile, b_w, m_ok, o_part, m_c):
    """Write the sums over a block of tokens for some rows, from a tile (N, C) of their masks."""
    m_tile = m_ok[:, None] & m_c[None, :]
    b_s = tl.load(sums.p_masks + o_tile, mask=m_tile, other=0.0) * b_w[:, None]  # (N, C) shares
    tl.store(sums.p_mass + o_part, tl.sum(b_s, axis=0), mask=m_c)
    if p_products is not None:
        b_s *= tl.load(p_products + o_tile, mask=m_tile, other=0.0)  # (N, C)
        tl.store(sums.p_mean + o_part, tl.sum(b_s, axis=0), mask=m_c)


def row_products(
    tokens: Tensor,
    x: Tensor,
    labels: Tensor,
    masks: Tensor,
    counts: Tensor,
    offsets: Tensor,
    longest: int,
    sums: RowSums | None = None,
    keep: bool = True,
) -> Tensor | None:
    """Return the inner products of rows and tokens in the layout of the masks; 0 for unused pairs.

    Args:
        tokens: (B, rows, D) cluster rows, contiguous.
        x: (T, D) tokens of all images, contiguous.
        labels: (T,) int64 labels, -1 for masked tokens.
        masks: (B, rows, N) or packed (rows, T) masks, for their shape only.
        counts: (B,) int64 last row of each image.
        offsets: (B + 1,) int64 offsets of the images.
        longest: maximum number of tokens of an image.
        sums: sums to write, see `row_sums`.
        keep: flag: return the products, not only write the sums.
    """
    (images, rows, _), config = tokens.shape, products_config(x.dtype)
    out = torch.empty_like(masks) if keep else None
    row_blocks = triton.cdiv(rows, config.block_n + REST - 1)
    token_blocks = triton.cdiv(longest, config.block_m)
    if images * token_blocks:
        row_products_bwd_kernel[(images * row_blocks * token_blocks,)](
            *(Tokens.of(tokens.flatten(0, 1)), Tokens.of(x), sums, offsets, labels, counts, out),
            *(rows, longest, *MaskLayout.of(masks)),
            PRECISION=dot_precision(x.dtype),
            REST_C=REST,
            **config.launch("BLOCK_N", "BLOCK_C"),
            # Some lanes would fuse the product weight * mask into the sum, others not, and a row
            # would have several sums.
            enable_fp_fusion=sums is None,
        )
    return out


def row_sums(
    x: Tensor, masks: Tensor, weights: Tensor | None, images: int, longest: int
) -> RowSums:
    """Return the sums to be written by `row_products`, whose arguments these are."""
    blocks = triton.cdiv(longest, products_config(x.dtype).block_m)
    parts = masks.new_empty(2, images, blocks, masks.shape[-2])
    return RowSums(masks, weights, x.new_empty(x.shape[0], dtype=torch.int8), parts[0], parts[1])
