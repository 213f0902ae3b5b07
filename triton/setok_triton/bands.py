"""Kernels of the nearest neighbours of images whose distance rows are not kept.

Each pair of tokens is multiplied once. Tiles of distances lie on bands: tile (i, i + o), blocks
counted around the end, has offset o from the diagonal. A tile hands each token the candidates that
are nearer than the token's K-th nearest so far, through a list with a few free slots. After each
band the K nearest candidates stay in the list. A band has about four times as many columns as all
bands before it, so that about 4 K candidates of a row are nearer than its K-th. A row with more
candidates than slots is searched by `density.neighbours`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.common import COUNTERS, Images, Tokens, flagged, locate
from setok_triton.configs import dot_precision, gram_config, keep_config
from setok_triton.distances import (
    described,
    diagonal_of,
    distances_of,
    gram_tile,
    split_columns,
)
from setok_triton.rows import Rows, append
from setok_triton.select import INFINITE, take_min

# Columns of a band over those of all bands before it.
GROWTH = 4.8


# Key of no candidate: that of an infinite distance.
EMPTY = tl.constexpr(0x7F800000 << 32)


class Lists(NamedTuple):
    """Candidates of each token: the K nearest first, then new ones in any order.

    A key has the bits of the squared distance above the token, and orders by both.
    """

    p_key: Tensor  # (T, slots) int64; slot K - 1 of a list that was too short has -1
    p_count: Tensor  # (T,) int32 candidates that were handed over, more than `slots` if lost


@triton.jit
def image_products(blocks, x, at, i_m, i_n, factor, PRECISION, BLOCK, BLOCK_D):
    """Return `gram_tile` of tokens scaled into range; a factor of 1 skips the scaling."""
    if factor == 1.0:
        b_dot = gram_tile(blocks, x, at, i_m, i_n, None, PRECISION, BLOCK, BLOCK_D)
    else:
        b_dot = gram_tile(blocks, x, at, i_m, i_n, factor, PRECISION, BLOCK, BLOCK_D)
    return b_dot


@triton.jit
def pair_products(blocks, x, at, i_m, i_first, i_second, factor, PRECISION, BLOCK, BLOCK_D):
    """Return two tiles of `gram_tile`, with rows i_m and two blocks of columns.

    The features of the rows are read once for both.
    """
    if (blocks is not None) and (factor is None):
        b_first = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        b_second = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        start = at.start.to(tl.int32)
        for i_d in range(0, x.D, BLOCK_D):
            b_a = blocks.load([start + i_m * BLOCK, i_d])  # (M, D)
            b_b = blocks.load([start + i_first * BLOCK, i_d])  # (N, D)
            b_c = blocks.load([start + i_second * BLOCK, i_d])  # (N, D)
            b_first = tl.dot(b_a, tl.trans(b_b), b_first, input_precision=PRECISION)
            b_second = tl.dot(b_a, tl.trans(b_c), b_second, input_precision=PRECISION)
    else:
        b_first = gram_tile(blocks, x, at, i_m, i_first, factor, PRECISION, BLOCK, BLOCK_D)
        b_second = gram_tile(blocks, x, at, i_m, i_second, factor, PRECISION, BLOCK, BLOCK_D)
    return b_first, b_second


@triton.jit
def load_norms(images, start, o_n, n):
    """Return the squared norms (N,) of tokens, infinite if excluded or behind the image."""
    return tl.load(images.p_norm + start + o_n, mask=o_n < n, other=float("inf"))


@triton.jit
def farthest_along(b_d, AXIS):
    """Return the maximum of the finite distances along an axis."""
    return tl.max(tl.where(b_d < float("inf"), b_d, 0.0), axis=AXIS)


@triton.jit
def store_farthest(p_farthest, b_far, start, o_n, n):
    """Raise the maximum distances of tokens o_n."""
    # Bits of non-negative floats order like the floats, and a maximum is order-independent.
    p_bits = p_farthest.to(tl.pointer_type(tl.int32)) + start + o_n
    tl.atomic_max(p_bits, b_far.to(tl.int32, bitcast=True), mask=o_n < n, sem="relaxed")


@triton.jit
def keys_of(b_d, o_token):
    """Return the keys of distances and tokens that broadcast to their shape."""
    b_bits = b_d.to(tl.int32, bitcast=True).to(tl.int64)
    return (b_bits << 32) | tl.broadcast_to(o_token, b_d.shape).to(tl.int64)


@triton.jit
def load_bounds(lists, start, o_n, n, K, SLOTS):
    """Return the keys (N,) that a new candidate of each token must precede."""
    p_last = lists.p_key + start * SLOTS + K - 1
    return tl.load(p_last + o_n * SLOTS, mask=o_n < n, other=-1)


@triton.jit
def take_slots(lists, start, b_key, b_bound, o_row):
    """Return a slot in the lists of tokens o_row for each key that precedes its bound, and these.

    Bounds and tokens broadcast to the shape of the keys.
    """
    m_near = b_key < b_bound
    p_count = lists.p_count + start + tl.broadcast_to(o_row, b_key.shape)
    return tl.atomic_add(p_count, 1, mask=m_near, sem="relaxed"), m_near


@triton.jit
def put(lists, start, b_key, b_slot, m_near, o_row, SLOTS):
    """Store keys into their slots, as far as the lists reach."""
    # Offsets within an image have 32 bits, which saves half of the instructions.
    p_slot = lists.p_key + start * SLOTS + (tl.broadcast_to(o_row, b_key.shape) * SLOTS + b_slot)
    tl.store(p_slot, b_key, mask=m_near & (b_slot < SLOTS))


@triton.jit(do_not_specialize=COUNTERS)
def band_diagonal_fwd_kernel(
    blocks,  # descriptor of x in blocks (BLOCK, BLOCK_D), or None
    x,
    images,  # p_norm is written
    lists,  # Lists
    p_farthest,  # (T,) float32, initially 0, or None
    L,
    INCLUDE_SELF: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Write the norms, and fill the first BLOCK slots of each list with the tile on the diagonal.

    The norm is the diagonal of the product, so equal tokens have distance exactly 0.
    """
    at = locate(images.p_offsets, L, tl.cdiv(L, BLOCK))
    i_b, i_m, start, n = at
    if i_m * BLOCK < n:
        factor = tl.load(images.p_factor + i_b)
        b_dot = image_products(blocks, x, at, i_m, i_m, factor, PRECISION, BLOCK, BLOCK_D)
        b_norm = diagonal_of(b_dot)
        o_m = i_m * BLOCK + tl.arange(0, BLOCK)
        m_ok = flagged(images.p_ok, start, o_m, o_m < n)
        b_norm = tl.where(m_ok, b_norm, float("inf"))
        tl.store(images.p_norm + start + o_m, b_norm, mask=o_m < n)
        # Part by part, to save registers.
        PARTS: tl.constexpr = 4 if BLOCK >= 128 else 1
        W: tl.constexpr = BLOCK // PARTS
        b_dots, b_norms = split_columns(b_dot, PARTS), split_columns(b_norm, PARTS)
        p_row = lists.p_key + start * SLOTS + o_m[:, None] * SLOTS
        for i in tl.static_range(PARTS):
            o_c = i * W + tl.arange(0, W)
            o_n = i_m * BLOCK + o_c
            b_d = distances_of(b_dots[i], b_norm, b_norms[i])
            if p_farthest is not None:
                store_farthest(p_farthest, farthest_along(b_d, 1), start, o_m, n)
            if not INCLUDE_SELF:
                b_d = tl.where(o_m[:, None] == o_n[None, :], float("inf"), b_d)
            m_rows = (o_m < n)[:, None] & (o_c >= 0)[None, :]
            tl.store(p_row + o_c[None, :], keys_of(b_d, o_n[None, :]), mask=m_rows)
        tl.store(lists.p_count + start + o_m, tl.full((BLOCK,), BLOCK, tl.int32), mask=o_m < n)


@triton.jit
def hand_over_tile(
    images, lists, p_farthest, at, b_dot, b_norm_m, b_bound_m, i_m, i_n, n, K, BLOCK, SLOTS
):
    """Hand the candidates of a tile over to its rows and columns; n is 0 to leave it out."""
    start, o_m = at.start, i_m * BLOCK + tl.arange(0, BLOCK)
    PARTS: tl.constexpr = 8 if BLOCK >= 128 else 1
    W: tl.constexpr = BLOCK // PARTS
    o_all = i_n * BLOCK + tl.arange(0, BLOCK)
    b_dots = split_columns(b_dot, PARTS)
    b_norms = split_columns(load_norms(images, start, o_all, n), PARTS)
    b_bounds = split_columns(load_bounds(lists, start, o_all, n, K, SLOTS), PARTS)
    b_far = tl.zeros((BLOCK,), dtype=tl.float32)
    for i in tl.static_range(PARTS):
        o_n = i_n * BLOCK + i * W + tl.arange(0, W)
        b_d = distances_of(b_dots[i], b_norm_m, b_norms[i])
        if p_farthest is not None:
            b_far = tl.maximum(b_far, farthest_along(b_d, 1))
            store_farthest(p_farthest, farthest_along(b_d, 0), start, o_n, n)
        # Both atomics before the stores, which wait for them.
        b_row, b_column = keys_of(b_d, o_n[None, :]), keys_of(b_d, o_m[:, None])
        b_slot, m_row = take_slots(lists, start, b_row, b_bound_m[:, None], o_m[:, None])
        b_slots, m_column = take_slots(lists, start, b_column, b_bounds[i][None, :], o_n[None, :])
        put(lists, start, b_row, b_slot, m_row, o_m[:, None], SLOTS)
        put(lists, start, b_column, b_slots, m_column, o_n[None, :], SLOTS)
    if p_farthest is not None:
        store_farthest(p_farthest, b_far, start, o_m, at.n)


@triton.jit
def band_block(i_m, offset, end, side):
    """Return the block of columns of row i_m with an offset, and whether the tile counts.

    Bands go around the end, so each has a tile in every row. The last one of an even number of
    blocks has each pair of blocks twice.
    """
    half = tl.where(2 * offset == side, offset, side)
    counts = (offset < end) & (2 * offset <= side) & (i_m < half)
    i_n = tl.where(i_m + offset < side, i_m + offset, i_m + offset - side)
    return tl.where(counts, i_n, i_m), counts


@triton.jit(do_not_specialize=COUNTERS)
def band_fwd_kernel(
    blocks,  # descriptor of x in blocks (BLOCK, BLOCK_D), or None
    x,
    images,  # with norms
    lists,  # Lists
    p_farthest,  # (T,) float32, or None
    first,  # offset of the first band from the diagonal, in blocks
    width,  # number of bands
    K,
    L,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLOTS: tl.constexpr,
    TILES: tl.constexpr,  # tiles of a program, one or two
):
    """Hand the candidates of some bands over, to the rows and the columns of each tile.

    Two tiles of a row read its features once.
    """
    groups = tl.cdiv(width, TILES)
    at = locate(images.p_offsets, L, tl.cdiv(L, BLOCK) * groups)
    i_b, i_group, start, n = at
    i_m, offset, side = i_group // groups, first + i_group % groups * TILES, tl.cdiv(n, BLOCK)
    i_n, one = band_block(i_m, offset, first + width, side)
    known = (images, lists, p_farthest, at)
    o_m = i_m * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(images.p_factor + i_b)
    if TILES == 1:
        if one:
            b_dot = image_products(blocks, x, at, i_m, i_n, factor, PRECISION, BLOCK, BLOCK_D)
            b_norm = load_norms(images, start, o_m, n)
            b_bound = load_bounds(lists, start, o_m, n, K, SLOTS)
            hand_over_tile(*known, b_dot, b_norm, b_bound, i_m, i_n, n, K, BLOCK, SLOTS)
    else:
        i_other, other = band_block(i_m, offset + 1, first + width, side)
        if one | other:
            if factor == 1.0:
                b_dot, b_dots = pair_products(
                    blocks, x, at, i_m, i_n, i_other, None, PRECISION, BLOCK, BLOCK_D
                )
            else:
                b_dot, b_dots = pair_products(
                    blocks, x, at, i_m, i_n, i_other, factor, PRECISION, BLOCK, BLOCK_D
                )
            b_norm = load_norms(images, start, o_m, n)
            b_bound = load_bounds(lists, start, o_m, n, K, SLOTS)
            here, there = tl.where(one, n, 0), tl.where(other, n, 0)
            hand_over_tile(*known, b_dot, b_norm, b_bound, i_m, i_n, here, K, BLOCK, SLOTS)
            hand_over_tile(*known, b_dots, b_norm, b_bound, i_m, i_other, there, K, BLOCK, SLOTS)


@triton.jit(do_not_specialize=COUNTERS)
def keep_nearest_fwd_kernel(
    p_offsets,
    lists,  # Lists
    p_knn,  # (T, K) int64 after the last band, else None
    full,  # Rows, initially none: those whose list was too short; None before the last band
    K,
    L,
    SLOTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Keep the K nearest candidates of each list, ascending, ties lowest index."""
    i_b, i_m, start, n = locate(p_offsets, L, tl.cdiv(L, BLOCK_M))
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < n
    b_count = tl.load(lists.p_count + start + o_m, mask=m_m, other=0)  # (M,)
    m_full = b_count > SLOTS
    p_list = lists.p_key + (start + o_m) * SLOTS
    o_c = tl.arange(0, SLOTS)[None, :]
    b_key = tl.load(p_list[:, None] + o_c, mask=o_c < b_count[:, None], other=EMPTY)  # (M, slots)
    b_bits, b_token = (b_key >> 32).to(tl.int32), b_key.to(tl.int32)
    for i_k in range(K):
        b_min, b_first, b_bits = take_min(b_bits, b_token)
        m_found = b_min < INFINITE
        if p_knn is None:
            b_near = (b_min.to(tl.int64) << 32) | b_first.to(tl.int64)
            # Nothing precedes the -1 of a list that was too short, so it gets nothing more.
            b_near = tl.where(m_full & (i_k == K - 1), -1, tl.where(m_found, b_near, EMPTY))
            tl.store(p_list + i_k, b_near, mask=m_m)
        else:
            b_first = tl.where(m_found, b_first, -1)
            tl.store(p_knn + (start + o_m) * K + i_k, b_first.to(tl.int64), mask=m_m)
    if p_knn is None:
        b_kept = tl.where(m_full, SLOTS + 1, tl.full((BLOCK_M,), 0, tl.int32) + K)
        tl.store(lists.p_count + start + o_m, b_kept, mask=m_m)
    else:
        append(full, i_b, start, o_m, m_full)


def bands(side: int) -> Iterator[tuple[int, int]]:
    """Yield the first offset and the number of the bands of each launch, for `side` blocks."""
    last = 0
    while 2 * last + 1 < side:
        grown = min(side // 2, int((2 * last + 1) * (1 + GROWTH) / 2 - 0.5))
        yield last + 1, grown - last
        last = grown


def slots_of(k: int) -> int:
    """Return the number of slots of a list."""
    return max(128, triton.next_power_of_2(16 * k))


def band_neighbours(
    x: Tensor,
    norm: Tensor,
    chunk: Chunk,
    knn: Tensor,
    include_self: bool,
    farthest: Tensor | None,
    full: Rows,
) -> None:
    """Write the nearest tokens of images with lists of a few neighbours, and the norms.

    Arguments are as in `density.neighbours`; `full` receives the rows that remain to be searched.
    """
    config, (total, k), longest = gram_config(x.dtype), knn.shape, chunk.longest
    slots, side = slots_of(k), triton.cdiv(longest, config.block_m)
    # Maxima take the registers of a second tile.
    tiles = 2 if farthest is None else 1
    lists = Lists(knn.new_empty(total, slots), knn.new_empty(total, dtype=torch.int32))
    if farthest is not None:
        farthest.zero_()
    known = (described(x, [config.block_m, config.block_d]), Tokens.of(x), Images.of(chunk, norm))
    options = {
        "PRECISION": dot_precision(x.dtype),
        "BLOCK": config.block_m,
        "BLOCK_D": config.block_d,
        "SLOTS": slots,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
    band_diagonal_fwd_kernel[(chunk.images * side,)](
        *(*known, lists, farthest, longest), INCLUDE_SELF=include_self, **options
    )
    keep = keep_config(slots)
    programs = (chunk.images * triton.cdiv(longest, keep.block_n),)
    launch = {"SLOTS": slots, "BLOCK_M": keep.block_n, "num_warps": keep.num_warps}
    for first, width in bands(side):
        keep_nearest_fwd_kernel[programs](chunk.offsets, lists, None, None, k, longest, **launch)
        band_fwd_kernel[(chunk.images * side * triton.cdiv(width, tiles),)](
            *(*known, lists, farthest, first, width, k, longest), TILES=tiles, **options
        )
    keep_nearest_fwd_kernel[programs](chunk.offsets, lists, knn, full, k, longest, **launch)
