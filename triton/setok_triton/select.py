"""Kernel of the nearest neighbours and the local density from kept rows of distances (Eq. 1).

The tiles that made the distances left the minimum of every group of `GROUP` columns. Of the groups
of a row, ordered by minimum and then by place, the first K hold the K nearest tokens: each of K
groups before that of a token holds a nearer one, or one as near of lower index. So a row costs its
minima and K groups instead of all its distances.
"""

import triton
import triton.language as tl
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.common import COUNTERS, FAR_INDEX, Images, flagged, locate
from setok_triton.configs import GROUP, select_config
from setok_triton.distances import KeptRows

# Bits of an infinite distance: above those of every other, like it.
INFINITE = tl.constexpr(0x7F800000)


@triton.jit
def take_least(b_bits, o_n):
    """The least of each row and its lowest place, and the rows without it.

    Distances are not negative, so their bits order as they do; integers have a reduction within a
    warp in one instruction.
    """
    b_least = tl.min(b_bits, axis=1)
    m_least = b_bits == b_least[:, None]
    b_first = tl.min(tl.where(m_least, o_n, FAR_INDEX), axis=1)
    return b_least, b_first, tl.where(o_n == b_first[:, None], INFINITE, b_bits)


@triton.jit(do_not_specialize=COUNTERS)
def select_fwd_kernel(
    images,
    p_least,  # (images of the chunk, L, groups) minima of the groups of columns
    p_most,  # (images of the chunk, L, tiles) largest finite of each tile, with p_farthest
    p_noise,  # (T,) float32 or None
    p_knn,  # (T, K) int64
    p_density,  # (T,) float32
    p_farthest,  # (T,) float32 squared distance to the token farthest away, or None
    K,
    L,
    INCLUDE_SELF: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,  # columns of each
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,  # at least the groups of a row
    BLOCK_C: tl.constexpr,  # candidates: at least GROUP * min(K, groups)
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """The K nearest tokens of BLOCK_M tokens, ascending, ties lowest index, -1 where absent."""
    i_b, i_m, start, n = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_M))
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)  # (M,)
    m_m = o_m < n
    i_rows = i_b * L + o_m.to(tl.int64)  # (M,)
    p_rows = images.p_distance + i_rows * L

    # Which groups: each slot of GROUP candidates has one.
    groups = tl.cdiv(n, GROUP)
    o_g = tl.arange(0, BLOCK_G)[None, :]
    p_minima = p_least + i_rows * tl.cdiv(L, GROUP)
    m_g = m_m[:, None] & (o_g < groups)
    b_minima = tl.load(p_minima[:, None] + o_g, mask=m_g, other=float("inf"))  # (M, G)
    b_minima = b_minima.to(tl.int32, bitcast=True)
    o_c = tl.arange(0, BLOCK_C)[None, :]
    b_group = tl.full((BLOCK_M, BLOCK_C), 0, dtype=tl.int32)
    slots = tl.minimum(K, groups)
    for i_k in range(slots):
        _, b_first, b_minima = take_least(b_minima, o_g)
        b_group = tl.where(o_c // GROUP == i_k, b_first[:, None], b_group)

    # Rows whose minima ran out took FAR_INDEX, or a group a second time.
    o_n = b_group * GROUP + o_c % GROUP  # (M, C)
    m_n = (o_c // GROUP < slots) & (b_group < groups) & (o_n < n) & m_m[:, None]
    if not INCLUDE_SELF:
        m_n = m_n & (o_n != o_m[:, None])
    b_d = tl.load(p_rows[:, None] + o_n, mask=m_n, other=float("inf"))  # (M, C)
    b_bits = b_d.to(tl.int32, bitcast=True)
    o_n = tl.where(m_n, o_n, FAR_INDEX)
    b_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    b_found = tl.zeros((BLOCK_M,), dtype=tl.float32)
    o_k = tl.arange(0, BLOCK_K)[None, :]
    b_knn = tl.full((BLOCK_M, BLOCK_K), -1, dtype=tl.int32)
    for i_k in range(K):
        b_least, b_first, b_bits = take_least(b_bits, o_n)
        m_found = b_least < INFINITE
        b_knn = tl.where((o_k == i_k) & m_found[:, None], b_first[:, None], b_knn)
        b_sum += tl.where(m_found, b_least.to(tl.float32, bitcast=True), 0.0)
        b_found += m_found.to(tl.float32)
    p_out = p_knn + ((start + o_m) * K)[:, None] + o_k
    tl.store(p_out, b_knn.to(tl.int64), mask=m_m[:, None] & (o_k < K))
    # Scaling the sum, not the terms, keeps sums of small integers exact and their ties ties.
    b_mean = tl.div_rn(b_sum, tl.maximum(b_found, 1.0))
    b_density = tl.exp(-tl.load(images.p_sigma + i_b) * b_mean)
    if p_noise is not None:
        b_density += tl.load(p_noise + start + o_m, mask=m_m, other=0.0)
    m_ok = flagged(images.p_ok, start, o_m, m_m)
    tl.store(p_density + start + o_m, tl.where(m_ok, b_density, 0.0), mask=m_m)
    if p_farthest is not None:
        o_t = tl.arange(0, BLOCK_T)[None, :]
        p_far = p_most + i_rows * tl.cdiv(L, TILE)
        m_far = m_m[:, None] & (o_t * TILE < n)
        b_far = tl.load(p_far[:, None] + o_t, mask=m_far, other=0.0)  # (M, T)
        tl.store(p_farthest + start + o_m, tl.max(b_far, axis=1), mask=m_m)


def select(
    chunk: Chunk,
    kept: KeptRows,
    knn: Tensor,
    density: Tensor,
    include_self: bool,
    noise: Tensor | None = None,
    farthest: Tensor | None = None,
) -> None:
    """Writes neighbours and densities of a dense chunk.

    Args:
        chunk: the images.
        kept: their rows of distances; made with the same `include_self`.
        knn: written; (T, K) int64 nearest tokens.
        density: written; (T,) float32, the noise added to it.
        include_self: a token is one of its own neighbours.
        noise: (T,) float32 or None.
        farthest: written where given; (T,) float32 squared distance to the token farthest away.
    """
    groups, k = kept.least.shape[2], knn.shape[1]
    config = select_config(groups, k)
    blocks = triton.cdiv(chunk.longest, config.block_m)
    select_fwd_kernel[(chunk.images * blocks,)](
        *(Images.of(chunk), kept.least, kept.most, noise, knn, density, farthest),
        *(k, chunk.longest),
        INCLUDE_SELF=include_self,
        GROUP=GROUP,
        TILE=kept.tile,
        BLOCK_M=config.block_m,
        BLOCK_G=config.block_g,
        BLOCK_C=config.block_c,
        BLOCK_K=triton.next_power_of_2(k),
        BLOCK_T=triton.next_power_of_2(triton.cdiv(chunk.longest, kept.tile)),
        num_warps=config.num_warps,
    )
