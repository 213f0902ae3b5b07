"""Rows of distances of a chunk of images, for those few enough tokens to keep them.

Two launches: the tiles on the diagonal, whose products hold the norms of the tokens, then the tiles
above it, each written to its mirror image as well. What follows needs no pass over the tokens: a
token is finite where its norm is, and the sums of the distances give their scale.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from triton.tools.tensor_descriptor import TensorDescriptor

from setok_triton.chunk import Chunk
from setok_triton.common import (
    COUNTERS,
    PITCH,
    Images,
    Tokens,
    dot_tile,
    flagged,
    locate,
    locate_tile,
    row_pitch,
)
from setok_triton.configs import GROUP, dot_precision, gram_config
from setok_triton.features import usable

# Reach of a tile without a usable token.
NOTHING = tl.constexpr(-200)
# Tokens of an image within 2**reach of the origin are multiplied as they are where the reach is in
# this range: no square of theirs overflows, and none that counts underflows.
LEAST_REACH = tl.constexpr(-20)
MOST_REACH = tl.constexpr(50)
# Norms below may have lost what underflows.
LEAST_NORM = tl.constexpr(2.0**-100)


class KeptRows(NamedTuple):
    """Rows of distances of the images of a chunk, and what is known without reading them.

    What stands behind the last token of an image is unwritten.
    """

    p_distance: Tensor  # (images, L, pitch) as in `Images`, of tokens brought into range
    p_least: Tensor  # (images, L, groups) float32 minima of each GROUP columns
    p_most: Tensor | None  # (images, L, side) float32 largest finite of each tile, where asked for
    p_sums: Tensor  # (images, tiles) float64 sums of the distances between the pairs of a tile
    p_counts: Tensor  # (images, side) int32 tokens of each tile on the diagonal that take part
    p_reach: Tensor  # (images, side) int32: their magnitudes are below 2**reach
    tile: int  # rows and columns of a tile


class ImageRows(NamedTuple):
    """Of one image, as in `KeptRows`, what is always there: Triton 3.6 can return no None."""

    p_distance: Tensor
    p_least: Tensor
    p_sums: Tensor
    p_counts: Tensor
    p_reach: Tensor


@triton.jit
def image_exponent(p_reach, n, tile, BLOCK_T):
    """The exponent of the power of two that brings the tokens of an image into range; 0: none."""
    o_t = tl.arange(0, BLOCK_T)
    b_reach = tl.load(p_reach + o_t, mask=o_t * tile < n, other=NOTHING)
    reach = tl.max(b_reach, axis=0)
    keep = (reach == NOTHING) | ((reach >= LEAST_REACH) & (reach <= MOST_REACH))
    return tl.where(keep, 0, tl.minimum(tl.maximum(reach, -126), 126))


@triton.jit
def power_of_two(exponent):
    """2**exponent, for exponents from -126 to 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def gram_tile(blocks, x, at, i_m, i_n, factor, PRECISION, BLOCK, BLOCK_D):
    """(M, N) inner products of tokens times `factor`, or as they are; behind the image anything.

    Always of the same shape and in the same order: those of equal tokens have the same bits.
    """
    if blocks is not None:
        b_dot = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        i_row = (at.start + i_m * BLOCK).to(tl.int32)
        i_column = (at.start + i_n * BLOCK).to(tl.int32)
        for i_d in range(0, x.D, BLOCK_D):
            b_a, b_b = blocks.load([i_row, i_d]), blocks.load([i_column, i_d])  # (M, D), (N, D)
            if factor is not None:
                b_a, b_b = (b_a * factor).to(b_a.dtype), (b_b * factor).to(b_b.dtype)
            b_dot = tl.dot(b_a, tl.trans(b_b), b_dot, input_precision=PRECISION)
    else:
        o_m, o_n = i_m * BLOCK + tl.arange(0, BLOCK), i_n * BLOCK + tl.arange(0, BLOCK)
        p_rows = x.p_x + (at.start + o_m) * x.stride_n
        p_columns = x.p_x + (at.start + o_n) * x.stride_n
        b_dot = dot_tile(
            *(p_rows, p_columns, o_m < at.n, o_n < at.n, factor, factor),
            *(x.D, x.stride_d, PRECISION, BLOCK_D),
        )
    return b_dot


@triton.jit
def halves(b):
    """The left and the right half of the columns, or of a vector."""
    HALF: tl.constexpr = b.shape[len(b.shape) - 1] // 2
    if len(b.shape) == 2:
        b = tl.permute(tl.reshape(b, (b.shape[0], 2, HALF)), (0, 2, 1))
    else:
        b = tl.permute(tl.reshape(b, (2, HALF)), (1, 0))
    return tl.split(b)


@triton.jit
def split_columns(b, PARTS):
    """Equal parts of the columns, or of a vector: a tuple of four, or of one."""
    if PARTS == 4:
        b_left, b_right = halves(b)
        b_first, b_second = halves(b_left)
        b_third, b_fourth = halves(b_right)
        return b_first, b_second, b_third, b_fourth
    else:
        return (b,)


@triton.jit
def diagonal_of(b_dot):
    """(M,) diagonal of a square tile."""
    # Part by part, which takes fewer registers.
    PARTS: tl.constexpr = 4 if b_dot.shape[0] >= 128 else 1
    b_parts = split_columns(b_dot, PARTS)
    o_m = tl.arange(0, b_dot.shape[0])
    W: tl.constexpr = b_dot.shape[0] // PARTS
    b_diagonal = tl.zeros((b_dot.shape[0],), dtype=tl.float32)
    for i in tl.static_range(PARTS):
        o_n = tl.arange(0, W) + i * W
        m_own = o_m[:, None] == o_n[None, :]
        b_diagonal += tl.sum(tl.where(m_own, b_parts[i], 0.0), axis=1)
    return b_diagonal


@triton.jit
def store_columns(
    image,  # ImageRows
    p_most,  # of the image, or None
    b_dot,  # (M, W)
    b_norm_m,  # (M,), infinite where the token takes no part
    b_norm_n,  # (W,)
    first_m,  # first token of the rows
    first_n,
    mirrored,
    n,
    L,
    INCLUDE_SELF,
    GROUP,
):
    """Distances of a part of a tile, and of its mirror image where it has one.

    Returns their sum in float64, and the largest finite of each row.
    """
    BLOCK: tl.constexpr = b_dot.shape[0]
    W: tl.constexpr = b_dot.shape[1]
    o_m, o_n = tl.arange(0, BLOCK), tl.arange(0, W)
    b_d = b_norm_m[:, None] + b_norm_n[None, :] - 2 * b_dot
    # What the product of a token that is not finite left is infinite too. On the diagonal norm and
    # product are the same number, so it is 0 as it is.
    b_d = tl.maximum(tl.where(b_d < float("inf"), b_d, float("inf")), 0.0)

    # Offsets within a tile fit in 32 bits. Rows end, infinite, with a whole sixteen of columns:
    # such masks leave stores as wide as they are. Below the diagonal there is no last column.
    pitch, end = row_pitch(L), tl.cdiv(n, PITCH) * PITCH
    m_rows, m_columns = (o_m < n - first_m)[:, None], (o_n < n - first_n)[None, :]
    p_tile = image.p_distance + first_m.to(tl.int64) * pitch + first_n
    m_tile = m_rows & (o_n < end - first_n)[None, :]
    tl.store(p_tile + (o_m[:, None] * pitch + o_n[None, :]), b_d, mask=m_tile)
    if mirrored:
        p_tile = image.p_distance + first_n.to(tl.int64) * pitch + first_m
        tl.store(p_tile + (o_n[None, :] * pitch + o_m[:, None]), b_d, mask=m_columns)

    # Integers below 2**20 sum exactly in sixteens, and then in float64 in any order.
    b_finite = tl.where(b_d < float("inf"), b_d, 0.0)
    b_sums = tl.sum(tl.reshape(b_finite, (BLOCK, W // GROUP, GROUP)), axis=2).to(tl.float64)
    # Nested: the outer condition is one of the compiler's, the inner one of the program's.
    if p_most is not None:  # noqa: SIM102
        if mirrored:
            side = tl.cdiv(L, BLOCK)
            p_down = p_most + first_n.to(tl.int64) * side + first_m // BLOCK
            tl.store(p_down + o_n * side, tl.max(b_finite, axis=0), mask=o_n < n - first_n)

    if not INCLUDE_SELF:  # noqa: SIM102
        if not mirrored:
            m_self = (first_m + o_m)[:, None] == (first_n + o_n)[None, :]
            b_d = tl.where(m_self, float("inf"), b_d)
    groups = tl.cdiv(L, GROUP)
    o_down, o_right = tl.arange(0, BLOCK // GROUP), tl.arange(0, W // GROUP)
    b_least = tl.min(tl.reshape(b_d, (BLOCK, W // GROUP, GROUP)), axis=2)  # (M, groups)
    p_least = image.p_least + first_m.to(tl.int64) * groups + first_n // GROUP
    m_groups = m_rows & (o_right < groups - first_n // GROUP)[None, :]
    tl.store(p_least + (o_m[:, None] * groups + o_right[None, :]), b_least, mask=m_groups)
    if mirrored:
        b_below = tl.min(tl.reshape(b_d, (BLOCK // GROUP, GROUP, W)), axis=1)  # (groups, W)
        p_below = image.p_least + first_n.to(tl.int64) * groups + first_m // GROUP
        tl.store(p_below + (o_n[None, :] * groups + o_down[:, None]), b_below, mask=m_columns)
    return tl.sum(tl.sum(b_sums, axis=1), axis=0), tl.max(b_finite, axis=1)


@triton.jit
def store_tile(rows, b_dot, b_norm_m, b_norm_n, i_b, i_m, i_n, mirrored, n, L, INCLUDE_SELF, GROUP):
    """Turns products into distances, and writes them with the minima, the farthest and the sum.

    Where a tile is known to be on the diagonal, `mirrored` is a constant, and what it leaves out is
    never compiled: Triton 3.6 fails on branches that it finds dead later.
    """
    BLOCK: tl.constexpr = b_dot.shape[0]
    # One part after the other: a whole tile, its places and its mirror image's take all registers.
    PARTS: tl.constexpr = 4 if BLOCK >= 128 else 1
    image, p_most = rows_of_image(rows, i_b, L, GROUP), None
    if rows.p_most is not None:
        p_most = farthest_of_image(rows, i_b, L)
    b_dots = split_columns(b_dot, PARTS)
    b_norms = split_columns(b_norm_n, PARTS)
    b_far = tl.zeros((BLOCK,), dtype=tl.float32)
    pairs = tl.zeros((), dtype=tl.float64)
    for i in tl.static_range(PARTS):
        pairs_part, b_far_part = store_columns(
            *(image, p_most, b_dots[i], b_norm_m, b_norms[i], i_m * BLOCK),
            *(i_n * BLOCK + i * (BLOCK // PARTS), mirrored, n, L, INCLUDE_SELF, GROUP),
        )
        pairs += pairs_part
        b_far = tl.maximum(b_far, b_far_part)
    # A tile on the diagonal has every pair twice.
    tl.store(image.p_sums + i_n * (i_n + 1) // 2 + i_m, pairs * tl.where(mirrored, 1.0, 0.5))
    if p_most is not None:
        o_m = i_m * BLOCK + tl.arange(0, BLOCK)
        tl.store(p_most + o_m.to(tl.int64) * tl.cdiv(L, BLOCK) + i_n, b_far, mask=o_m < n)


@triton.jit
def rows_of_image(rows, i_b, L, GROUP):
    """The `ImageRows` of one image of a chunk."""
    side = tl.cdiv(L, rows.tile)
    return ImageRows(
        rows.p_distance + i_b * L * row_pitch(L),
        rows.p_least + i_b * L * tl.cdiv(L, GROUP),
        rows.p_sums + i_b * (side * (side + 1) // 2),
        rows.p_counts + i_b * side,
        rows.p_reach + i_b * side,
    )


@triton.jit
def farthest_of_image(rows, i_b, L):
    """Where `p_most` of one image begins."""
    return rows.p_most + i_b * L * tl.cdiv(L, rows.tile)


@triton.jit(do_not_specialize=COUNTERS)
def diagonal_fwd_kernel(
    blocks,  # descriptor of x in blocks (BLOCK, BLOCK_D), or None
    x,
    images,  # with norms; p_ok and p_norm are written
    p_valid,  # (T,) uint8 or None
    rows,  # KeptRows
    L,
    INCLUDE_SELF: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,  # tokens and
    BLOCK_F: tl.constexpr,  # features that are looked through at once
):
    """The tiles on the diagonal, as if no token had to be brought into range; norms and reach."""
    side = tl.cdiv(L, BLOCK)
    at = locate(images.p_offsets, L, side)
    i_b, i_m, start, n = at
    if i_m * BLOCK < n:
        o_m = i_m * BLOCK + tl.arange(0, BLOCK)
        b_dot = gram_tile(blocks, x, at, i_m, i_m, None, PRECISION, BLOCK, BLOCK_D)
        b_norm = diagonal_of(b_dot)
        m_valid = flagged(p_valid, start, o_m, o_m < n)
        m_ok = m_valid & (b_norm < float("inf"))
        most = tl.max(tl.where(m_ok, b_norm, 0.0), axis=0)
        lost = tl.max((m_valid & ~m_ok).to(tl.int32), axis=0)
        # The norm is below 2 ** (its exponent + 1).
        reach = ((most.to(tl.int32, bitcast=True) >> 23) - 127 + 2) >> 1
        tl.store(images.p_ok + start + o_m, m_ok.to(tl.int8), mask=o_m < n)
        tl.store(images.p_norm + start + o_m, b_norm, mask=o_m < n)
        if (lost != 0) | (most < LEAST_NORM):
            # A norm may have left the range of float32, or the token may not be finite.
            tl.debug_barrier()
            largest = 0.0
            for i_s in range(i_m * BLOCK, tl.minimum(n, (i_m + 1) * BLOCK), BLOCK_S):
                o_s = i_s + tl.arange(0, BLOCK_S)
                m_s, b_largest = usable(x, p_valid, start, o_s, o_s < n, BLOCK_F)
                tl.store(images.p_ok + start + o_s, m_s.to(tl.int8), mask=o_s < n)
                largest = tl.maximum(largest, tl.max(b_largest, axis=0))
            bits = largest.to(tl.int32, bitcast=True)
            reach = tl.where(bits == 0, NOTHING, (bits >> 23) - 126)
            tl.debug_barrier()
            m_ok = flagged(images.p_ok, start, o_m, o_m < n)
        tl.store(rows.p_reach + i_b * side + i_m, reach)
        tl.store(rows.p_counts + i_b * side + i_m, tl.sum(m_ok.to(tl.int32), axis=0))
        b_norm = tl.where(m_ok, b_norm, float("inf"))
        store_tile(rows, b_dot, b_norm, b_norm, i_b, i_m, i_m, False, n, L, INCLUDE_SELF, GROUP)


@triton.jit(do_not_specialize=COUNTERS)
def distances_fwd_kernel(
    blocks,  # descriptor of x in blocks (BLOCK, BLOCK_D), or None
    x,
    images,  # with norms; those of images out of range are written
    rows,  # KeptRows
    L,
    INCLUDE_SELF: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,  # at least the tiles of a row
):
    """The tiles above the diagonal; of an image out of range those on it once more."""
    side = tl.cdiv(L, BLOCK)
    at = locate(images.p_offsets, L, side * (side + 1) // 2)
    i_b, i_tile, start, n = at
    i_m, i_n = locate_tile(i_tile)
    exponent = image_exponent(rows.p_reach + i_b * side, n, BLOCK, BLOCK_T)
    if (i_n * BLOCK < n) & ((i_m != i_n) | (exponent != 0)):
        o_m, o_n = i_m * BLOCK + tl.arange(0, BLOCK), i_n * BLOCK + tl.arange(0, BLOCK)
        if exponent == 0:
            b_dot = gram_tile(blocks, x, at, i_m, i_n, None, PRECISION, BLOCK, BLOCK_D)
            b_norm_m = tl.load(images.p_norm + start + o_m, mask=o_m < n, other=0.0)
            b_norm_n = tl.load(images.p_norm + start + o_n, mask=o_n < n, other=0.0)
        else:
            # Rare: the norms in range are made here too, for each tile again.
            factor = power_of_two(-exponent)
            b_norm_m = tl.zeros((BLOCK,), dtype=tl.float32)
            b_norm_n = tl.zeros((BLOCK,), dtype=tl.float32)
            b_dot = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
            for i_turn in range(3):
                i_row = tl.where(i_turn == 1, i_n, i_m)
                i_column = tl.where(i_turn == 0, i_m, i_n)
                b_dot = gram_tile(blocks, x, at, i_row, i_column, factor, PRECISION, BLOCK, BLOCK_D)
                if i_turn == 0:
                    b_norm_m = diagonal_of(b_dot)
                if i_turn == 1:
                    b_norm_n = diagonal_of(b_dot)
            if i_m == i_n:
                tl.store(images.p_norm + start + o_m, b_norm_m, mask=o_m < n)
        b_norm_m = tl.where(flagged(images.p_ok, start, o_m, o_m < n), b_norm_m, float("inf"))
        b_norm_n = tl.where(flagged(images.p_ok, start, o_n, o_n < n), b_norm_n, float("inf"))
        store_tile(
            *(rows, b_dot, b_norm_m, b_norm_n, i_b, i_m, i_n, i_m != i_n),
            *(n, L, INCLUDE_SELF, GROUP),
        )


def _check_device(x: Tensor) -> None:
    """Triton 3.7.1 ends the process while it compiles the diagonal of 16 bits for Blackwell."""
    if not x.is_cuda or x.element_size() > 2 or isinstance(x, FakeTensor):
        return
    major, minor = torch.cuda.get_device_capability(x.device)
    if major >= 10:
        raise RuntimeError(
            f"backend='triton' cannot run: takes {x.dtype} up to compute capability 9.0, "
            f"got {major}.{minor}; use float32 or backend='reference'"
        )


def described(x: Tensor, block: list[int]) -> TensorDescriptor | None:
    """A descriptor of (T, D) tokens in blocks; None where their rows do not lie as one needs it."""
    # Without tensor cores columns are read across the rows, which descriptors lay out for others.
    if x.dtype == torch.float32 and dot_precision(x.dtype) == "ieee":
        return None
    # What is fake lies nowhere; it is taken to be aligned.
    aligned = isinstance(x, FakeTensor) or x.data_ptr() % 16 == 0
    pitch = x.stride(0) * x.element_size()
    if not aligned or x.stride(1) != 1 or pitch % 16 != 0 or x.stride(0) < x.shape[1]:
        return None
    # Rows are counted in 32 bits.
    if x.shape[1] == 0 or x.shape[0] + block[0] >= 2**31:
        return None
    return TensorDescriptor.from_tensor(x, block)


def distances(
    x: Tensor,
    valid: Tensor | None,
    chunk: Chunk,
    rows: KeptRows,
    norm: Tensor,
    include_self: bool,
) -> None:
    """Makes the rows of a chunk, and writes which of its tokens take part.

    Args:
        x: (T, D) tokens of all images.
        valid: (T,) uint8 or None.
        chunk: the images; `ok` is written.
        rows: written.
        norm: written; (T,) squared norms of the tokens in range.
        include_self: the minima count the token itself.

    Raises:
        RuntimeError: the device is of a kind that the tiles cannot be compiled for.
    """
    _check_device(x)
    config, longest = gram_config(x.dtype), chunk.longest
    side = triton.cdiv(longest, config.block_m)
    known = described(x, [config.block_m, config.block_d]), Tokens.of(x), Images.of(chunk, norm)
    options = {
        "INCLUDE_SELF": include_self,
        "GROUP": GROUP,
        "PRECISION": dot_precision(x.dtype),
        "BLOCK": config.block_m,
        "BLOCK_D": config.block_d,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
    diagonal_fwd_kernel[(chunk.images * side,)](
        *(*known, valid, rows, longest),
        BLOCK_S=16,
        BLOCK_F=512 // x.element_size(),
        **options,
    )
    distances_fwd_kernel[(chunk.images * side * (side + 1) // 2,)](
        *(*known, rows, longest), BLOCK_T=triton.next_power_of_2(side), **options
    )
