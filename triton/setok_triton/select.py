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
from setok_triton.common import FAR_INDEX, locate
from setok_triton.configs import GROUP, select_config
from setok_triton.distances import KeptRows, image_exponent, power_of_two

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


@triton.jit
def image_scale(p_sums, count, sigma, exponent, n, TILE: tl.constexpr, BLOCK_P: tl.constexpr):
    """Scale of the distances of an image: `sigma`, or if None what makes their mean 1."""
    if sigma is None:
        # The sums of the tiles above the diagonal and on it, in the order of their numbers.
        side, o_p = tl.cdiv(n, TILE), tl.arange(0, BLOCK_P)
        m_p = o_p < side * (side + 1) // 2
        pairs = tl.sum(tl.load(p_sums + o_p, mask=m_p, other=0.0), axis=0)
        c = tl.maximum(count, 1).to(tl.float64)
        variance = pairs / (c * c)
        positive = variance > 0
        scale = tl.where(positive, 0.5 / tl.where(positive, variance, 1.0), 0.0)
    else:
        undo = power_of_two(exponent).to(tl.float64)
        scale = (tl.zeros((), dtype=tl.float64) + sigma) * undo * undo
    return tl.minimum(scale, 3.4028234663852886e38).to(tl.float32)


@triton.jit
def list_nearest(
    p_row,  # (M,) rows of distances
    p_minima,  # (M,) minima of their groups
    o_m,
    m_m,
    n,
    K,
    INCLUDE_SELF: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(M, BLOCK_K) nearest tokens, ascending, ties lowest index, -1 where absent.

    And (M,) the sum of their distances, and how many there are.
    """
    # Which groups: each slot of GROUP candidates has one.
    groups = tl.cdiv(n, GROUP)
    o_g = tl.arange(0, BLOCK_G)[None, :]
    m_g = m_m[:, None] & (o_g < groups)
    b_minima = tl.load(p_minima[:, None] + o_g, mask=m_g, other=float("inf"))  # (M, G)
    b_minima = b_minima.to(tl.int32, bitcast=True)
    o_c = tl.arange(0, BLOCK_C)[None, :]
    b_group = tl.full((o_m.shape[0], BLOCK_C), 0, dtype=tl.int32)
    slots = tl.minimum(K, groups)
    for i_k in range(slots):
        _, b_first, b_minima = take_least(b_minima, o_g)
        b_group = tl.where(o_c // GROUP == i_k, b_first[:, None], b_group)

    # Rows whose minima ran out took FAR_INDEX, or a group a second time.
    o_n = b_group * GROUP + o_c % GROUP  # (M, C)
    m_n = (o_c // GROUP < slots) & (b_group < groups) & (o_n < n) & m_m[:, None]
    if not INCLUDE_SELF:
        m_n = m_n & (o_n != o_m[:, None])
    b_d = tl.load(p_row[:, None] + o_n, mask=m_n, other=float("inf"))  # (M, C)
    b_bits = b_d.to(tl.int32, bitcast=True)
    o_n = tl.where(m_n, o_n, FAR_INDEX)
    b_sum = tl.zeros(o_m.shape, dtype=tl.float32)
    b_found = tl.zeros(o_m.shape, dtype=tl.float32)
    o_k = tl.arange(0, BLOCK_K)[None, :]
    b_knn = tl.full((o_m.shape[0], BLOCK_K), -1, dtype=tl.int32)
    for i_k in range(K):
        b_least, b_first, b_bits = take_least(b_bits, o_n)
        m_found = b_least < INFINITE
        b_knn = tl.where((o_k == i_k) & m_found[:, None], b_first[:, None], b_knn)
        b_sum += tl.where(m_found, b_least.to(tl.float32, bitcast=True), 0.0)
        b_found += m_found.to(tl.float32)
    return b_knn, b_sum, b_found


@triton.jit
def sum_listed(p_row, p_list, m_m, K):
    """(M,) sum of the distances to the listed tokens, in the order of the list; how many there are.

    The same bits as in `list_nearest`.
    """
    b_sum = tl.zeros(m_m.shape, dtype=tl.float32)
    b_found = tl.zeros(m_m.shape, dtype=tl.float32)
    for i_k in range(K):
        b_other = tl.load(p_list + i_k, mask=m_m, other=-1)
        m_found = b_other >= 0
        b_sum += tl.load(p_row + b_other, mask=m_found, other=0.0)
        b_found += m_found.to(tl.float32)
    return b_sum, b_found


@triton.jit(do_not_specialize=["K", "L", "side"])
def select_fwd_kernel(
    p_ok,
    p_offsets,
    p_reach,  # (images of the chunk, side)
    p_counts,  # (images of the chunk, side)
    p_sums,  # (images of the chunk, tiles)
    p_distance,  # (images of the chunk, L, L)
    p_least,  # (images of the chunk, L, groups) minima of the groups of columns
    p_most,  # (images of the chunk, L, side) largest finite of each tile, or None
    p_noise,  # (T,) float32 or None
    p_knn,  # (T, K) int64; known in a replay
    p_density,  # (T,) float32
    p_farthest,  # (T,) float32 squared distance to the token farthest away, or None
    p_factor,  # (images of the chunk,) float32 power of two that brought the tokens into range
    p_sigma,  # (images of the chunk,) float32 scale of the distances
    p_taking_part,  # (images of the chunk,) int32
    sigma,  # where the scale is fixed, or None
    K,
    L,
    blocks_per_image,
    side,  # tiles of a row
    INCLUDE_SELF: tl.constexpr,
    REPLAY: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,  # at least the groups of a row
    BLOCK_C: tl.constexpr,  # candidates: at least GROUP * min(K, groups)
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,  # at least `side`
    BLOCK_P: tl.constexpr,  # at least the tiles of an image
):
    """Neighbours and densities (Eq. 1) of BLOCK_M tokens, and the scale of the distances."""
    i_b, i_m, start, n = locate(p_offsets, L, blocks_per_image)
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)  # (M,)
    m_m = o_m < n
    o_t = tl.arange(0, BLOCK_T)
    count = tl.sum(tl.load(p_counts + i_b * side + o_t, mask=o_t * TILE < n, other=0), axis=0)
    exponent = image_exponent(p_reach + i_b * side, n, TILE, BLOCK_T)
    p_sums += i_b * (side * (side + 1) // 2)
    scale = image_scale(p_sums, count, sigma, exponent, n, TILE, BLOCK_P)
    if i_m == 0:
        tl.store(p_factor + i_b, power_of_two(-exponent))
        tl.store(p_sigma + i_b, scale)
        tl.store(p_taking_part + i_b, count)

    i_row = i_b * L + o_m.to(tl.int64)  # (M,)
    p_row = p_distance + i_row * L
    p_list = p_knn + (start + o_m) * K
    if REPLAY:
        b_sum, b_found = sum_listed(p_row, p_list, m_m, K)
    else:
        b_knn, b_sum, b_found = list_nearest(
            *(p_row, p_least + i_row * tl.cdiv(L, GROUP), o_m, m_m, n, K),
            *(INCLUDE_SELF, GROUP, BLOCK_G, BLOCK_C, BLOCK_K),
        )
        o_k = tl.arange(0, BLOCK_K)[None, :]
        tl.store(p_list[:, None] + o_k, b_knn.to(tl.int64), mask=m_m[:, None] & (o_k < K))
    # Scaling the sum, not the terms, keeps sums of small integers exact and their ties ties.
    b_density = tl.exp(-scale * tl.div_rn(b_sum, tl.maximum(b_found, 1.0)))
    if p_noise is not None:
        b_density += tl.load(p_noise + start + o_m, mask=m_m, other=0.0)
    m_ok = tl.load(p_ok + start + o_m, mask=m_m, other=0) != 0
    tl.store(p_density + start + o_m, tl.where(m_ok, b_density, 0.0), mask=m_m)
    if p_farthest is not None:
        p_far = p_most + i_row * side
        m_t = m_m[:, None] & (o_t * TILE < n)[None, :]
        b_far = tl.load(p_far[:, None] + o_t[None, :], mask=m_t, other=0.0)
        tl.store(p_farthest + start + o_m, tl.max(b_far, axis=1), mask=m_m)


def select(
    chunk: Chunk,
    kept: KeptRows,
    knn: Tensor,
    density: Tensor,
    include_self: bool,
    sigma: float | None,
    noise: Tensor | None = None,
    farthest: Tensor | None = None,
    replay: bool = False,
) -> None:
    """Writes neighbours and densities of a dense chunk.

    Args:
        chunk: the images; `factor`, `sigma` and `taking_part` are written.
        kept: their rows of distances; made with the same `include_self`.
        knn: (T, K) int64 nearest tokens, written or replayed.
        density: written; (T,) float32, the noise added to it.
        include_self: a token is one of its own neighbours.
        sigma: fixed scale of the squared distances; None for that of the variance.
        noise: (T,) float32 or None.
        farthest: written where given; (T,) float32 squared distance to the token farthest away.
        replay: whether the neighbours are known.
    """
    groups, side, k = kept.least.shape[2], kept.reach.shape[1], knn.shape[1]
    config = select_config(groups, k)
    blocks = triton.cdiv(chunk.longest, config.block_m)
    select_fwd_kernel[(chunk.images * blocks,)](
        chunk.ok,
        chunk.offsets,
        kept.reach,
        kept.counts,
        kept.sums,
        kept.distances,
        kept.least,
        kept.most,
        noise,
        knn,
        density,
        farthest,
        chunk.factor,
        chunk.sigma,
        chunk.taking_part,
        sigma,
        k,
        chunk.longest,
        blocks,
        side,
        INCLUDE_SELF=include_self,
        REPLAY=replay,
        GROUP=GROUP,
        TILE=kept.tile,
        BLOCK_M=config.block_m,
        BLOCK_G=config.block_g,
        BLOCK_C=config.block_c,
        BLOCK_K=triton.next_power_of_2(k),
        BLOCK_T=triton.next_power_of_2(side),
        BLOCK_P=triton.next_power_of_2(kept.sums.shape[1]),
        num_warps=config.num_warps,
    )
