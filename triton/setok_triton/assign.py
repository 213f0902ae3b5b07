"""Kernel of the nearest centre of every token."""

import triton
import triton.language as tl
from torch import Tensor

from setok_triton.common import FAR_INDEX, distance_tile, locate
from setok_triton.configs import dot_precision, tile_config
from setok_triton.features import norms, scales


@triton.jit(do_not_specialize=["D", "C"])
def assign_fwd_kernel(
    p_x,
    p_norm,
    p_ok,
    p_offsets,
    p_factor,
    p_centres,  # (B, C) int64, -1 where there is none
    p_out,  # (T,) int64
    D,
    C,
    blocks_per_image,
    stride_n,
    stride_d,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Number of the nearest centre of BLOCK_M tokens, ties lowest number; a centre is its own."""
    i_b, i_m, start, n = locate(p_offsets, blocks_per_image)
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    factor = tl.load(p_factor + i_b)
    b_least = tl.full((BLOCK_M,), float("inf"), dtype=tl.float32)
    b_number = tl.full((BLOCK_M,), -1, dtype=tl.int32)
    for i_c in range(0, C, BLOCK_N):
        o_c = i_c + tl.arange(0, BLOCK_N)
        b_centre = tl.load(p_centres + i_b * C + o_c, mask=o_c < C, other=-1).to(tl.int32)
        o_n = tl.where(b_centre >= 0, b_centre, FAR_INDEX)
        b_d = distance_tile(
            p_x,
            p_norm,
            p_ok,
            p_x,
            start,
            i_b,
            o_m,
            o_n,
            n,
            factor,
            D,
            0,
            stride_n,
            stride_d,
            False,
            PRECISION,
            BLOCK_D,
        )
        # Even where another centre equals it.
        m_self = (o_m[:, None] == o_n[None, :]) & (b_d < float("inf"))
        b_d = tl.where(m_self, -1.0, b_d)
        b_near = tl.min(b_d, axis=1)
        b_first = tl.min(tl.where(b_d == b_near[:, None], o_c[None, :], FAR_INDEX), axis=1)
        b_number = tl.where(b_near < b_least, b_first, b_number)
        b_least = tl.minimum(b_near, b_least)
    tl.store(p_out + start + o_m, b_number.to(tl.int64), mask=o_m < n)


def assign(
    x: Tensor, valid: Tensor | None, centres: Tensor, offsets: Tensor, longest: int
) -> Tensor:
    """(T,) number of the nearest centre; -1 for what is masked, and in images without a centre.

    Args:
        x: (T, D) tokens of all images.
        valid: (T,) uint8 or None.
        centres: (B, C) int64 tokens of each image, -1 where there is none.
        offsets: (B + 1,) int64.
        longest: most tokens of an image.
    """
    ok, factor, _, _ = scales(x, valid, offsets, longest, 1.0)
    norm = norms(x, offsets, longest, factor)
    config = tile_config(x.dtype)
    out = offsets.new_full((x.shape[0],), -1)
    images, count = centres.shape
    blocks = triton.cdiv(longest, config.block_m)
    if images * blocks * count:
        assign_fwd_kernel[(images * blocks,)](
            x,
            norm,
            ok,
            offsets,
            factor,
            centres.contiguous(),
            out,
            x.shape[1],
            count,
            blocks,
            *x.stride(),
            PRECISION=dot_precision(x.dtype),
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_D=config.block_d,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return out
