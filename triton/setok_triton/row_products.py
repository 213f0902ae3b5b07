"""Kernel of the inner products of rows and tokens: what a gradient says of each share."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.common import locate, products
from setok_triton.configs import dot_precision, tile_config
from setok_triton.scope import MaskLayout


@triton.jit(do_not_specialize=["rows", "D", "L"])
def row_products_bwd_kernel(
    p_tokens,  # (B, rows, D)
    p_x,  # (T, D)
    p_usable,  # (T,) int8
    p_offsets,
    p_counts,
    p_out,  # (rows, ...) float32 rows stride_row apart
    rows,
    D,
    L,
    row_blocks,
    token_blocks,
    stride_n,  # of rows and of tokens; their features lie side by side
    stride_image,
    stride_row,
    stride_start,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """t_c . x_i of BLOCK_M rows and BLOCK_N tokens; 0 behind the residual, and where unusable."""
    i_b, i_tile, start, n = locate(p_offsets, L, row_blocks * token_blocks)
    o_c = i_tile // token_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_tile % token_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_usable = m_n & (tl.load(p_usable + start + o_n, mask=m_n, other=0) != 0)
    p_rows = p_tokens + (i_b * rows + o_c) * stride_n
    p_columns = p_x + (start + o_n) * stride_n
    m_c = o_c <= tl.load(p_counts + i_b)
    b_dot = products(p_rows, p_columns, m_c, m_usable, 1.0, D, 1, PRECISION, BLOCK_D)
    p_image = p_out + i_b * stride_image + start * stride_start
    p_tile = p_image + o_c.to(tl.int64)[:, None] * stride_row + o_n[None, :]
    tl.store(p_tile, b_dot, mask=(o_c < rows)[:, None] & m_n[None, :])


def row_products(
    tokens: Tensor,
    x: Tensor,
    usable: Tensor,
    masks: Tensor,
    counts: Tensor,
    offsets: Tensor,
    longest: int,
) -> Tensor:
    """Inner products of rows and tokens, in the layout of the masks; 0 where one has no place.

    Args:
        tokens: (B, rows, D), contiguous.
        x: (T, D), contiguous.
        usable: (T,) int8.
        masks: (B, rows, N) or packed (rows, T); only the shape is used.
        counts: (B,) int64 last row of each image.
        offsets: (B + 1,) int64.
        longest: most tokens of an image.
    """
    (images, rows, dim), layout = tokens.shape, MaskLayout.of(masks)
    config = tile_config(x.dtype)
    out = torch.empty_like(masks)
    row_blocks = triton.cdiv(rows, config.block_m)
    token_blocks = triton.cdiv(longest, config.block_n)
    if images * token_blocks:
        row_products_bwd_kernel[(images * row_blocks * token_blocks,)](
            tokens,
            x,
            usable,
            offsets,
            counts,
            out,
            rows,
            dim,
            longest,
            row_blocks,
            token_blocks,
            dim,
            layout.image,
            layout.row,
            layout.start,
            PRECISION=dot_precision(x.dtype),
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_D=config.block_d,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return out
