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
from setok_triton.common import COUNTERS, FAR_INDEX, Images, flagged, locate, row_pitch
from setok_triton.configs import GROUP, select_config
from setok_triton.distances import (
    KeptRows,
    farthest_of_image,
    image_exponent,
    power_of_two,
    rows_of_image,
)

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
def image_scale(p_sums, count, sigma, exponent, n, tile, BLOCK_P):
    """Scale of the distances of an image: `sigma`, or where it is None what makes their mean 1."""
    if sigma is None:
        # The sums of the tiles on the diagonal and above it, in the order of their numbers.
        side, o_p = tl.cdiv(n, tile), tl.arange(0, BLOCK_P)
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
def list_nearest(p_list, p_row, p_minima, o_m, m_m, n, K, INCLUDE_SELF, GROUP, BLOCK_G, BLOCK_C):
    """Lists the K nearest tokens of the rows o_m, ascending, ties lowest index, -1 where absent.

    Returns (M,) the sum of their distances, and how many there are. `p_list` (M,) is where the
    lists begin, `p_row` (M,) the rows of distances, `p_minima` (M,) the minima of their groups.
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

    # Rows whose minima ran out took FAR_INDEX, or a group a second time. What stands behind the
    # last token in its group is infinite.
    o_n = b_group * GROUP + o_c % GROUP  # (M, C)
    m_n = (o_c // GROUP < slots) & (b_group < groups) & m_m[:, None]
    b_d = tl.load(p_row[:, None] + o_n, mask=m_n, other=float("inf"))  # (M, C)
    b_bits = b_d.to(tl.int32, bitcast=True)
    if not INCLUDE_SELF:
        b_bits = tl.where(o_n == o_m[:, None], INFINITE, b_bits)
    b_sum = tl.zeros(o_m.shape, dtype=tl.float32)
    b_found = tl.zeros(o_m.shape, dtype=tl.float32)
    for i_k in range(K):
        b_least, b_first, b_bits = take_least(b_bits, o_n)
        m_found = b_least < INFINITE
        b_sum += tl.where(m_found, b_least.to(tl.float32, bitcast=True), 0.0)
        b_found += m_found.to(tl.float32)
        tl.store(p_list + i_k, tl.where(m_found, b_first, -1).to(tl.int64), mask=m_m)
    return b_sum, b_found


@triton.jit
def sum_listed(p_row, p_list, m_m, K):
    """(M,) sum of the distances to the listed tokens, and how many there are.

    In the order of the list: the same bits as in `list_nearest`.
    """
    b_sum = tl.zeros(m_m.shape, dtype=tl.float32)
    b_found = tl.zeros(m_m.shape, dtype=tl.float32)
    for i_k in range(K):
        b_other = tl.load(p_list + i_k, mask=m_m, other=-1)  # (M,)
        m_found = b_other >= 0
        b_sum += tl.load(p_row + b_other, mask=m_found, other=0.0)  # (M,)
        b_found += m_found.to(tl.float32)
    return b_sum, b_found


@triton.jit(do_not_specialize=COUNTERS)
def select_fwd_kernel(
    images,  # p_factor, p_sigma and p_taking_part are written
    rows,  # KeptRows
    p_noise,  # (T,) float32 or None
    p_knn,  # (T, K) int64; known in a replay
    p_density,  # (T,) float32
    p_farthest,  # (T,) float32 squared distance to the token farthest away, or None
    sigma,  # where the scale is fixed, or None
    K,
    L,
    INCLUDE_SELF: tl.constexpr,
    REPLAY: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,  # at least the groups of a row
    BLOCK_C: tl.constexpr,  # candidates: at least GROUP * min(K, groups)
    BLOCK_T: tl.constexpr,  # at least the tiles of a row
    BLOCK_P: tl.constexpr,  # at least the tiles of an image
):
    """Neighbours and densities (Eq. 1) of BLOCK_M tokens, and the scale of the distances."""
    i_b, i_m, start, n = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_M))
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)  # (M,)
    m_m = o_m < n
    image, o_t = rows_of_image(rows, i_b, L, GROUP), tl.arange(0, BLOCK_T)
    count = tl.sum(tl.load(image.p_counts + o_t, mask=o_t * rows.tile < n, other=0), axis=0)
    exponent = image_exponent(image.p_reach, n, rows.tile, BLOCK_T)
    scale = image_scale(image.p_sums, count, sigma, exponent, n, rows.tile, BLOCK_P)
    if i_m == 0:
        tl.store(images.p_factor + i_b, power_of_two(-exponent))
        tl.store(images.p_sigma + i_b, scale)
        tl.store(images.p_taking_part + i_b, count)

    p_row = image.p_distance + o_m.to(tl.int64) * row_pitch(L)  # (M,)
    p_list = p_knn + (start + o_m) * K
    if REPLAY:
        b_sum, b_found = sum_listed(p_row, p_list, m_m, K)
    else:
        p_minima = image.p_least + o_m.to(tl.int64) * tl.cdiv(L, GROUP)
        b_sum, b_found = list_nearest(
            p_list, p_row, p_minima, o_m, m_m, n, K, INCLUDE_SELF, GROUP, BLOCK_G, BLOCK_C
        )
    # Scaling the sum, not the terms, keeps sums of small integers exact and their ties ties.
    b_density = tl.exp(-scale * tl.div_rn(b_sum, tl.maximum(b_found, 1.0)))
    if p_noise is not None:
        b_density += tl.load(p_noise + start + o_m, mask=m_m, other=0.0)
    m_ok = flagged(images.p_ok, start, o_m, m_m)
    tl.store(p_density + start + o_m, tl.where(m_ok, b_density, 0.0), mask=m_m)
    if p_farthest is not None:
        p_far = farthest_of_image(rows, i_b, L) + o_m.to(tl.int64) * tl.cdiv(L, rows.tile)
        m_far = m_m[:, None] & (o_t * rows.tile < n)[None, :]
        b_far = tl.load(p_far[:, None] + o_t[None, :], mask=m_far, other=0.0)  # (M, T)
        tl.store(p_farthest + start + o_m, tl.max(b_far, axis=1), mask=m_m)


def select(
    chunk: Chunk,
    rows: KeptRows,
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
        rows: their rows of distances; made with the same `include_self`.
        knn: (T, K) int64 nearest tokens, written or replayed.
        density: written; (T,) float32, the noise added to it.
        include_self: a token is one of its own neighbours.
        sigma: fixed scale of the squared distances; None for that of the variance.
        noise: (T,) float32 or None.
        farthest: written where given; (T,) float32 squared distance to the token farthest away.
        replay: whether the neighbours are known.
    """
    k, longest, side = knn.shape[1], chunk.longest, triton.cdiv(chunk.longest, rows.tile)
    config, block_t = select_config(triton.cdiv(longest, GROUP), k), triton.next_power_of_2(side)
    select_fwd_kernel[(chunk.images * triton.cdiv(longest, config.block_m),)](
        *(Images.of(chunk), rows, noise, knn, density, farthest, sigma, k, longest),
        INCLUDE_SELF=include_self,
        REPLAY=replay,
        GROUP=GROUP,
        BLOCK_M=config.block_m,
        BLOCK_G=config.block_g,
        BLOCK_C=config.block_c,
        BLOCK_T=block_t,
        # Of as many tiles as BLOCK_T has room for: else more builds, one for each power of two.
        BLOCK_P=triton.next_power_of_2(block_t * (block_t + 1) // 2),
        num_warps=config.num_warps,
    )
