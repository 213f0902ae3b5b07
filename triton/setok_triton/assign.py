"""Kernel of the nearest, or the most similar, centre of every token."""

import triton
import triton.language as tl
from torch import Tensor

from setok_triton.common import FAR_INDEX, distance_tile, locate
from setok_triton.configs import dot_precision, tile_config
from setok_triton.similarity import similarity_tile


@triton.jit(do_not_specialize=["D", "C", "L"])
def assign_fwd_kernel(
    p_x,
    p_norm,  # (T,) float32 squared norms, or where SIMILAR their inverse roots
    p_power,  # (T,) float32, where SIMILAR
    p_ok,
    p_offsets,
    p_factor,
    p_centres,  # (B, C) int64
    p_counts,  # (B,) int64 how many of them there are
    p_out,  # (T,) int64
    D,
    C,
    L,
    blocks_per_image,
    stride_n,
    stride_d,
    SIMILAR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Number of the centre of BLOCK_M tokens, ties lowest number; a centre is its own."""
    i_b, i_m, start, n = locate(p_offsets, L, blocks_per_image)
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    factor, count = tl.load(p_factor + i_b), tl.load(p_counts + i_b).to(tl.int32)
    b_least = tl.full((BLOCK_M,), float("inf"), dtype=tl.float32)
    b_number = tl.full((BLOCK_M,), -1, dtype=tl.int32)
    for i_c in range(0, count, BLOCK_N):
        o_c = i_c + tl.arange(0, BLOCK_N)
        b_centre = tl.load(p_centres + i_b * C + o_c, mask=o_c < count, other=-1)
        o_n = tl.where(b_centre >= 0, b_centre, FAR_INDEX).to(tl.int32)
        if SIMILAR:
            b_d = -similarity_tile(
                p_x,
                p_norm,
                p_power,
                p_ok,
                start,
                o_m,
                o_n,
                n,
                factor,
                D,
                stride_n,
                stride_d,
                PRECISION,
                BLOCK_D,
            )
        else:
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
        b_d = tl.where(m_self, -float("inf"), b_d)
        b_near = tl.min(b_d, axis=1)
        b_first = tl.min(tl.where(b_d == b_near[:, None], o_c[None, :], FAR_INDEX), axis=1)
        b_number = tl.where(b_near < b_least, b_first, b_number)
        b_least = tl.minimum(b_near, b_least)
    tl.store(p_out + start + o_m, b_number.to(tl.int64), mask=o_m < n)


def assign(
    x: Tensor,
    norm: Tensor,
    ok: Tensor,
    factor: Tensor,
    offsets: Tensor,
    longest: int,
    centres: Tensor,
    counts: Tensor,
    power: Tensor | None = None,
) -> Tensor:
    """(T,) number of the nearest centre; -1 for what takes no part, and in images without a centre.

    Args:
        x: (T, D) tokens of all images.
        norm: (T,) squared norms of the tokens in range; inverse norms where `power` is given.
        ok: (T,) int8, tokens that take part.
        factor: (B,) power of two that brings the tokens into range; with `power` int32, not 0 where
            it has to be looked at.
        offsets: (B + 1,) int64.
        longest: most tokens of an image.
        centres: (B, C) int64 tokens of each image.
        counts: (B,) int64 how many of them there are.
        power: (T,) power of two that brings each token into range: the most similar centre, not the
            nearest.
    """
    config = tile_config(x.dtype)
    out = offsets.new_empty(x.shape[0])
    blocks = triton.cdiv(longest, config.block_m)
    assign_fwd_kernel[(centres.shape[0] * blocks,)](
        x,
        norm,
        norm if power is None else power,
        ok,
        offsets,
        factor,
        centres,
        counts,
        out,
        x.shape[1],
        centres.shape[1],
        longest,
        blocks,
        *x.stride(),
        SIMILAR=power is not None,
        PRECISION=dot_precision(x.dtype),
        BLOCK_M=config.block_m,
        # The centres of an image seldom fill more, and scaled tokens take registers.
        BLOCK_N=64,
        BLOCK_D=config.block_d,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out
