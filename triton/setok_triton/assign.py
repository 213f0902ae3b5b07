"""Kernel of the nearest or most similar centre of each token."""

import triton
import triton.language as tl
from torch import Tensor

from setok_triton.common import COUNTERS, FAR_INDEX, Images, Tokens, distance_tile, locate
from setok_triton.configs import dot_precision, tile_config
from setok_triton.similarity import Directions, similarity_tile


@triton.jit(do_not_specialize=COUNTERS)
def assign_fwd_kernel(
    x,
    images,
    directions,  # Directions for the most similar centre; None for the nearest
    p_centres,  # (B, C) int64
    p_counts,  # (B,) int64 number of centres
    p_out,  # (T,) int64
    C,
    L,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the row of the centre of BLOCK_M tokens, ties lowest row; a centre has its own."""
    at = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_M))
    o_m = at.i_block * BLOCK_M + tl.arange(0, BLOCK_M)  # (M,)
    count = tl.load(p_counts + at.i_b).to(tl.int32)
    if directions is None:
        factor = tl.load(images.p_factor + at.i_b)
    b_min = tl.full((BLOCK_M,), float("inf"), dtype=tl.float32)
    b_row = tl.full((BLOCK_M,), -1, dtype=tl.int32)
    for i_c in range(0, count, BLOCK_N):
        o_c = i_c + tl.arange(0, BLOCK_N)
        # (N,) tokens of a block of centres; FAR_INDEX masks them below
        b_centre = tl.load(p_centres + at.i_b * C + o_c, mask=o_c < count, other=-1)
        o_n = tl.where(b_centre >= 0, b_centre, FAR_INDEX).to(tl.int32)
        if directions is not None:
            b_d = -similarity_tile(x, directions, at, o_m, o_n, PRECISION, BLOCK_D)  # (M, N)
        else:
            b_d = distance_tile(x, images, at, o_m, o_n, factor, L, PRECISION, BLOCK_D)
        # A centre keeps its own row even if an equal token is a centre too.
        m_self = (o_m[:, None] == o_n[None, :]) & (b_d < float("inf"))
        b_d = tl.where(m_self, -float("inf"), b_d)
        b_near = tl.min(b_d, axis=1)
        b_first = tl.min(tl.where(b_d == b_near[:, None], o_c[None, :], FAR_INDEX), axis=1)
        b_row = tl.where(b_near < b_min, b_first, b_row)
        b_min = tl.minimum(b_near, b_min)
    tl.store(p_out + at.start + o_m, b_row.to(tl.int64), mask=o_m < at.n)


def assign(
    x: Tensor,
    images: Images,
    longest: int,
    centres: Tensor,
    counts: Tensor,
    directions: Directions | None = None,
) -> Tensor:
    """Return the row (T,) of the nearest centre; -1 if excluded or in an image without a centre.

    Args:
        x: (T, D) tokens of all images.
        images: offsets of the images, and for the nearest centre the norms of the tokens.
        longest: maximum number of tokens of an image.
        centres: (B, C) int64 centres of each image.
        counts: (B,) int64 number of centres.
        directions: directions of the tokens for the most similar centre; None for the nearest.
    """
    config = tile_config(x.dtype)
    out = counts.new_empty(x.shape[0])
    blocks = triton.cdiv(longest, config.block_m)
    # Images seldom have more centres, and scaled tokens need registers.
    launch = config.launch() | {"BLOCK_N": 64}
    assign_fwd_kernel[(centres.shape[0] * blocks,)](
        *(Tokens.of(x), images, directions, centres, counts, out, centres.shape[1], longest),
        PRECISION=dot_precision(x.dtype),
        **launch,
    )
    return out
