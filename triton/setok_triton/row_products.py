"""Kernel of the inner products of cluster rows and tokens, the gradient of soft assignments."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.common import COUNTERS, Images, Tokens, flagged, locate, products
from setok_triton.configs import dot_precision, tile_config
from setok_triton.scope import MaskLayout


@triton.jit(do_not_specialize=COUNTERS)
def row_products_bwd_kernel(
    tokens,  # (B rows, D)
    x,
    images,
    p_counts,  # (B,) int64
    p_out,  # (rows, ...) float32 rows stride_row apart
    rows,
    L,
    stride_image,
    stride_row,
    stride_start,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write t_c . x_i of BLOCK_M rows and BLOCK_N tokens; 0 after the residual and if unusable."""
    token_blocks = tl.cdiv(L, BLOCK_N)
    i_b, i_tile, start, n = locate(images.p_offsets, L, tl.cdiv(rows, BLOCK_M) * token_blocks)
    o_c = i_tile // token_blocks * BLOCK_M + tl.arange(0, BLOCK_M)  # (M,)
    o_n = i_tile % token_blocks * BLOCK_N + tl.arange(0, BLOCK_N)  # (N,)
    m_n = o_n < n
    m_usable = flagged(images.p_ok, start, o_n, m_n)
    p_rows = tokens.p_x + (i_b * rows + o_c) * tokens.stride_n
    p_columns = x.p_x + (start + o_n) * x.stride_n
    m_c = o_c <= tl.load(p_counts + i_b)
    # The features of both are contiguous (stride 1).
    b_dot = products(p_rows, p_columns, m_c, m_usable, 1.0, x.D, 1, PRECISION, BLOCK_D)
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
    """Return the inner products of rows and tokens in the layout of the masks; 0 for unused pairs.

    Args:
        tokens: (B, rows, D) cluster rows, contiguous.
        x: (T, D) tokens of all images, contiguous.
        usable: (T,) int8 flags.
        masks: (B, rows, N) or packed (rows, T) masks, for their shape only.
        counts: (B,) int64 last row of each image.
        offsets: (B + 1,) int64 offsets of the images.
        longest: maximum number of tokens of an image.
    """
    (images, rows, _), config = tokens.shape, tile_config(x.dtype)
    out = torch.empty_like(masks)
    row_blocks = triton.cdiv(rows, config.block_m)
    token_blocks = triton.cdiv(longest, config.block_n)
    if images * token_blocks:
        row_products_bwd_kernel[(images * row_blocks * token_blocks,)](
            *(Tokens.of(tokens.flatten(0, 1)), Tokens.of(x), Images(offsets, usable), counts, out),
            *(rows, longest, *MaskLayout.of(masks)),
            PRECISION=dot_precision(x.dtype),
            **config.launch(),
        )
    return out
