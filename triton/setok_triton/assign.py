"""Kernel of the nearest, or the most similar, centre of every token."""

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
    directions,  # or None: the nearest centre, not the most similar
    p_centres,  # (B, C) int64
    p_counts,  # (B,) int64 how many of them there are
    p_out,  # (T,) int64
    C,
    L,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Number of the centre of BLOCK_M tokens, ties lowest number; a centre is its own."""
    at = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_M))
    o_m = at.i_block * BLOCK_M + tl.arange(0, BLOCK_M)  # (M,)
    count = tl.load(p_counts + at.i_b).to(tl.int32)
    if directions is None:
        factor = tl.load(images.p_factor + at.i_b)
    b_least = tl.full((BLOCK_M,), float("inf"), dtype=tl.float32)
    b_number = tl.full((BLOCK_M,), -1, dtype=tl.int32)
    for i_c in range(0, count, BLOCK_N):
        o_c = i_c + tl.arange(0, BLOCK_N)
        b_centre = tl.load(p_centres + at.i_b * C + o_c, mask=o_c < count, other=-1)  # (N,)
        o_n = tl.where(b_centre >= 0, b_centre, FAR_INDEX).to(tl.int32)
        if directions is not None:
            b_d = -similarity_tile(x, directions, at, o_m, o_n, PRECISION, BLOCK_D)  # (M, N)
        else:
            b_d = distance_tile(x, images, at, o_m, o_n, factor, L, PRECISION, BLOCK_D)
        # Even where another centre equals it.
        m_self = (o_m[:, None] == o_n[None, :]) & (b_d < float("inf"))
        b_d = tl.where(m_self, -float("inf"), b_d)
        b_near = tl.min(b_d, axis=1)
        b_first = tl.min(tl.where(b_d == b_near[:, None], o_c[None, :], FAR_INDEX), axis=1)
        b_number = tl.where(b_near < b_least, b_first, b_number)
        b_least = tl.minimum(b_near, b_least)
    tl.store(p_out + at.start + o_m, b_number.to(tl.int64), mask=o_m < at.n)


def assign(
    x: Tensor,
    images: Images,
    longest: int,
    centres: Tensor,
    counts: Tensor,
    directions: Directions | None = None,
) -> Tensor:
    """(T,) number of the nearest centre; -1 for what takes no part, and in images without a centre.

    Args:
        x: (T, D) tokens of all images.
        images: where they lie, and for the nearest centre the norms of the tokens.
        longest: most tokens of an image.
        centres: (B, C) int64 tokens of each image.
        counts: (B,) int64 how many of them there are.
        directions: of the tokens; the most similar centre, not the nearest.
    """
    config = tile_config(x.dtype)
    out = counts.new_empty(x.shape[0])
    blocks = triton.cdiv(longest, config.block_m)
    # The centres of an image seldom fill more columns, and scaled tokens take registers.
    launch = config.launch() | {"BLOCK_N": 64}
    assign_fwd_kernel[(centres.shape[0] * blocks,)](
        *(Tokens.of(x), images, directions, centres, counts, out, centres.shape[1], longest),
        PRECISION=dot_precision(x.dtype),
        **launch,
    )
    return out
