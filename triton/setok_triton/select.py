"""Kernel of the nearest neighbours and the local density from kept distance rows (Eq. 1).

The distance kernels also wrote the minimum of each group of `GROUP` columns. Sorted by minimum and
position, the first K groups of a row contain its K nearest tokens: each of K groups before that of
a token has a nearer token, or an equally near one of lower index. So a row costs its minima and K
groups instead of all its distances.
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

# Bits of an infinite distance, larger than those of any other.
INFINITE = tl.constexpr(0x7F800000)


@triton.jit
def take_min(b_bits, o_n):
    """Return the minimum of each row, its lowest position, and the rows without it.

    Distances are non-negative, so their bits order like the floats. Integers have a warp reduction
    in one instruction.
    """
    b_min = tl.min(b_bits, axis=1)
    m_min = b_bits == b_min[:, None]
    b_first = tl.min(tl.where(m_min, o_n, FAR_INDEX), axis=1)
    return b_min, b_first, tl.where(o_n == b_first[:, None], INFINITE, b_bits)


@triton.jit
def image_scale(p_sums, count, sigma, exponent, n, tile, BLOCK_P):
    """Return the scale of an image's distances: `sigma`, or if None that of the variance."""
    if sigma is None:
        # (P,) sums of the tiles on and above the diagonal, in order of their index
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
    """List the K nearest tokens of the rows o_m, ascending, ties lowest index, -1 for none.

    Returns the sums (M,) of their distances, and their counts (M,). `p_list` (M,) points to the
    lists, `p_row` (M,) to the distance rows, `p_minima` (M,) to the minima of their groups.
    """
    # Choose the groups: each slot of GROUP candidates has one.
    groups = tl.cdiv(n, GROUP)
    o_g = tl.arange(0, BLOCK_G)[None, :]
    m_g = m_m[:, None] & (o_g < groups)
    b_minima = tl.load(p_minima[:, None] + o_g, mask=m_g, other=float("inf"))  # (M, G)
    b_minima = b_minima.to(tl.int32, bitcast=True)
    o_c = tl.arange(0, BLOCK_C)[None, :]
    b_group = tl.full((o_m.shape[0], BLOCK_C), 0, dtype=tl.int32)
    slots = tl.minimum(K, groups)
    for i_k in range(slots):
        _, b_first, b_minima = take_min(b_minima, o_g)
        b_group = tl.where(o_c // GROUP == i_k, b_first[:, None], b_group)

    # A row with too few finite minima has FAR_INDEX or a repeated group. Entries of a group after
    # the last token are infinite.
    o_n = b_group * GROUP + o_c % GROUP  # (M, C)
    m_n = (o_c // GROUP < slots) & (b_group < groups) & m_m[:, None]
    b_d = tl.load(p_row[:, None] + o_n, mask=m_n, other=float("inf"))  # (M, C)
    b_bits = b_d.to(tl.int32, bitcast=True)
    if not INCLUDE_SELF:
        b_bits = tl.where(o_n == o_m[:, None], INFINITE, b_bits)
    b_sum = tl.zeros(o_m.shape, dtype=tl.float32)
    b_found = tl.zeros(o_m.shape, dtype=tl.float32)
    for i_k in range(K):
        b_min, b_first, b_bits = take_min(b_bits, o_n)
        m_found = b_min < INFINITE
        b_sum += tl.where(m_found, b_min.to(tl.float32, bitcast=True), 0.0)
        b_found += m_found.to(tl.float32)
        tl.store(p_list + i_k, tl.where(m_found, b_first, -1).to(tl.int64), mask=m_m)
    return b_sum, b_found


@triton.jit
def sum_listed(p_row, p_list, m_m, K):
    """Return the sums (M,) of the distances to the listed tokens, and their counts (M,).

    The order of summation is that of the list, so the bits equal those of `list_nearest`.
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
    images,  # p_factor, p_sigma and p_num_ok are written
    rows,  # KeptRows
    p_noise,  # (T,) float32 or None
    p_knn,  # (T, K) int64; an input in a replay
    p_density,  # (T,) float32
    p_farthest,  # (T,) float32 squared distance to the farthest token, or None
    sigma,  # fixed scale, or None for the variance
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
    """Write neighbours and densities (Eq. 1) of BLOCK_M tokens, and the scale of the distances."""
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
        tl.store(images.p_num_ok + i_b, count)

    p_row = image.p_distance + o_m.to(tl.int64) * row_pitch(L)  # (M,)
    p_list = p_knn + (start + o_m) * K
    if REPLAY:
        b_sum, b_found = sum_listed(p_row, p_list, m_m, K)
    else:
        p_minima = image.p_minima + o_m.to(tl.int64) * tl.cdiv(L, GROUP)
        b_sum, b_found = list_nearest(
            p_list, p_row, p_minima, o_m, m_m, n, K, INCLUDE_SELF, GROUP, BLOCK_G, BLOCK_C
        )
    # Scaling the sum, not the terms, keeps sums of small integers exact, so ties stay ties.
    b_density = tl.exp(-scale * tl.div_rn(b_sum, tl.maximum(b_found, 1.0)))
    if p_noise is not None:
        b_density += tl.load(p_noise + start + o_m, mask=m_m, other=0.0)  # (M,)
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
    """Write neighbours and densities of a chunk with distance rows.

    Args:
        chunk: images of the chunk; its `factor`, `sigma` and `num_ok` are written.
        rows: distance rows, computed with the same `include_self`.
        knn: (T, K) int64 nearest tokens, output or replayed.
        density: output, (T,) float32 densities including the noise.
        include_self: flag: a token is one of its own neighbours.
        sigma: fixed scale of the squared distances; None for the scale from the variance.
        noise: (T,) float32 noise or None.
        farthest: output or None, (T,) float32 squared distance to the farthest token.
        replay: flag: the neighbours are inputs.
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
        # Derived from BLOCK_T, not from the exact number of tiles, to compile fewer variants.
        BLOCK_P=triton.next_power_of_2(block_t * (block_t + 1) // 2),
        num_warps=config.num_warps,
    )
