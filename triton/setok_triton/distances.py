"""Rows of distances of a chunk of images, for those few enough tokens to keep them.

Two launches: the tiles on the diagonal, whose products hold the norms of the tokens, then the tiles
above it, each written to its mirror image as well. What follows needs no pass over the tokens: a
token is finite where its norm is, and the sums of the distances give the scale.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from triton.tools.tensor_descriptor import TensorDescriptor

from setok_triton.chunk import Chunk
from setok_triton.common import dot_tile, locate, locate_tile
from setok_triton.configs import GROUP, dot_precision, gram_config
from setok_triton.features import usable

# Of a tile without a usable token.
NOTHING = tl.constexpr(-200)
# Tokens of an image within 2**reach of the origin are multiplied as they are where the reach is in
# this range: no square of theirs overflows, and none that counts underflows.
LEAST_REACH = tl.constexpr(-20)
MOST_REACH = tl.constexpr(50)


@triton.jit
def image_exponent(p_reach, n, BLOCK: tl.constexpr, BLOCK_T: tl.constexpr):
    """The exponent of the power of two that brings the tokens of an image into range; 0: none."""
    o_t = tl.arange(0, BLOCK_T)
    b_reach = tl.load(p_reach + o_t, mask=o_t * BLOCK < n, other=NOTHING)
    reach = tl.max(b_reach, axis=0)
    keep = (reach == NOTHING) | ((reach >= LEAST_REACH) & (reach <= MOST_REACH))
    return tl.where(keep, 0, tl.minimum(tl.maximum(reach, -126), 126))


@triton.jit
def power_of_two(exponent):
    """2**exponent, for exponents from -126 to 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def gram_tile(
    x,  # descriptor of the tokens (T, D) in blocks (BLOCK, BLOCK_D), or None
    p_x,
    start,
    i_m,
    i_n,
    n,
    factor,
    D,
    stride_n,
    stride_d,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(BLOCK, BLOCK) inner products of tokens times `factor`; behind the image they are anything.

    Always of the same shape and in the same order: those of equal tokens have the same bits.
    """
    if x is not None:
        b_dot = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        i_row = (start + i_m * BLOCK).to(tl.int32)
        i_column = (start + i_n * BLOCK).to(tl.int32)
        for i_d in range(0, D, BLOCK_D):
            b_a, b_b = x.load([i_row, i_d]), x.load([i_column, i_d])
            if SCALED:
                b_a, b_b = (b_a * factor).to(b_a.dtype), (b_b * factor).to(b_b.dtype)
            b_dot = tl.dot(b_a, tl.trans(b_b), b_dot, input_precision=PRECISION)
    else:
        o_m, o_n = i_m * BLOCK + tl.arange(0, BLOCK), i_n * BLOCK + tl.arange(0, BLOCK)
        p_rows, p_columns = p_x + (start + o_m) * stride_n, p_x + (start + o_n) * stride_n
        b_dot = dot_tile(
            *(p_rows, p_columns, o_m < n, o_n < n, factor, factor, D, stride_d),
            *(SCALED, PRECISION, BLOCK_D),
        )
    return b_dot


@triton.jit
def diagonal_of(b_dot, axis: tl.constexpr, BLOCK: tl.constexpr):
    """(BLOCK,) of a square tile, laid out along the other axis."""
    o = tl.arange(0, BLOCK)
    return tl.sum(tl.where(o[:, None] == o[None, :], b_dot, 0.0), axis=axis)


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
def split_columns(b, PARTS: tl.constexpr):
    """Equal parts of the columns, or of a vector: a tuple of four, or of one."""
    if PARTS == 4:
        b_left, b_right = halves(b)
        b_first, b_second = halves(b_left)
        b_third, b_fourth = halves(b_right)
        return b_first, b_second, b_third, b_fourth
    else:
        return (b,)


@triton.jit
def store_columns(
    p_distance,  # of the image
    p_least,  # of the image
    p_most,  # of the image and the tile's row, or None
    b_dot,  # (BLOCK, W)
    b_norm_m,
    b_norm_n,
    m_m,  # which tokens of the rows take part
    m_n,
    first_m,  # first token of the rows
    first_n,
    n,
    L,
    side,
    INCLUDE_SELF: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Distances of a part of a tile, and of its mirror image but for the diagonal.

    Returns their sum in float64, and the largest finite of each row.
    """
    BLOCK: tl.constexpr = b_dot.shape[0]
    W: tl.constexpr = b_dot.shape[1]
    o_m, o_n = tl.arange(0, BLOCK), tl.arange(0, W)
    m_self = (first_m + o_m)[:, None] == (first_n + o_n)[None, :]
    mirrored = first_m // BLOCK != first_n // BLOCK
    b_d = b_norm_m[:, None] + b_norm_n[None, :] - 2 * b_dot
    b_d = tl.where((b_d > 0) & ~m_self, b_d, 0.0)
    b_d = tl.where(m_m[:, None] & m_n[None, :], b_d, float("inf"))
    # Offsets within a tile fit in 32 bits.
    row_m, row_n = first_m.to(tl.int64) * L, first_n.to(tl.int64) * L
    m_tile = (o_m < n - first_m)[:, None] & (o_n < n - first_n)[None, :]
    p_tile = p_distance + row_m + first_n
    tl.store(p_tile + (o_m[:, None] * L + o_n[None, :]), b_d, mask=m_tile)
    if mirrored:
        p_tile = p_distance + row_n + first_m
        tl.store(p_tile + (o_n[None, :] * L + o_m[:, None]), b_d, mask=m_tile)

    groups = tl.cdiv(L, GROUP)
    o_down, o_right = tl.arange(0, BLOCK // GROUP), tl.arange(0, W // GROUP)
    b_near = b_d
    if not INCLUDE_SELF:
        b_near = tl.where(m_self, float("inf"), b_d)
    b_rows = tl.min(tl.reshape(b_near, (BLOCK, W // GROUP, GROUP)), axis=2)  # (M, groups)
    p_rows = p_least + first_m.to(tl.int64) * groups + first_n // GROUP
    m_rows = (o_m < n - first_m)[:, None] & (o_right < groups - first_n // GROUP)[None, :]
    tl.store(p_rows + (o_m[:, None] * groups + o_right[None, :]), b_rows, mask=m_rows)
    if mirrored:
        b_columns = tl.min(tl.reshape(b_near, (BLOCK // GROUP, GROUP, W)), axis=1)  # (groups, N)
        p_columns = p_least + first_n.to(tl.int64) * groups + first_m // GROUP
        m_columns = (o_n < n - first_n)[None, :]
        tl.store(p_columns + (o_n[None, :] * groups + o_down[:, None]), b_columns, mask=m_columns)

    # Integers below 2**20 sum exactly in sixteens, and then in float64 in any order.
    b_finite = tl.where(b_d < float("inf"), b_d, 0.0)
    b_sums = tl.sum(tl.reshape(b_finite, (BLOCK, W // GROUP, GROUP)), axis=2).to(tl.float64)
    if p_most is not None:
        if mirrored:
            p_down = p_most + first_n.to(tl.int64) * side + first_m // BLOCK
            tl.store(p_down + o_n * side, tl.max(b_finite, axis=0), mask=o_n < n - first_n)
    return tl.sum(tl.sum(b_sums, axis=1), axis=0), tl.max(b_finite, axis=1)


@triton.jit
def store_tile(
    p_distance,
    p_least,
    p_most,  # or None
    p_sums,
    b_dot,
    b_norm_m,
    b_norm_n,
    m_m,  # which tokens of the rows take part
    m_n,
    i_b,
    i_m,
    i_n,
    n,
    L,
    side,
    INCLUDE_SELF: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Turns products into distances, and writes them with the minima, the farthest and the sum."""
    p_distance += i_b * L * L
    p_least += i_b * L * tl.cdiv(L, GROUP)
    if p_most is not None:
        p_most += i_b * L * side
    first_m = i_m * BLOCK
    # One part after the other: a whole tile, its places and its mirror image's take all registers.
    PARTS: tl.constexpr = 4 if BLOCK >= 128 else 1
    b_dots, b_norms = split_columns(b_dot, PARTS), split_columns(b_norm_n, PARTS)
    m_parts = split_columns(m_n.to(tl.int32), PARTS)
    b_far = tl.zeros((BLOCK,), dtype=tl.float32)
    sum_tile = tl.zeros((), dtype=tl.float64)
    for i in tl.static_range(PARTS):
        sum_part, b_far_part = store_columns(
            *(p_distance, p_least, p_most, b_dots[i], b_norm_m, b_norms[i], m_m, m_parts[i] != 0),
            *(first_m, i_n * BLOCK + i * (BLOCK // PARTS), n, L, side, INCLUDE_SELF, GROUP),
        )
        sum_tile += sum_part
        b_far = tl.maximum(b_far, b_far_part)
    # A tile on the diagonal has every pair twice.
    sum_tile *= tl.where(i_m == i_n, 0.5, 1.0)
    tl.store(p_sums + i_b * (side * (side + 1) // 2) + i_n * (i_n + 1) // 2 + i_m, sum_tile)
    if p_most is not None:
        o_m = first_m + tl.arange(0, BLOCK)
        tl.store(p_most + o_m.to(tl.int64) * side + i_n, b_far, mask=o_m < n)


@triton.jit(do_not_specialize=["L", "side"])
def diagonal_fwd_kernel(
    x,
    p_x,
    p_valid,  # (T,) uint8 or None
    p_offsets,
    p_ok,  # (T,) int8: valid and finite
    p_norm,  # (T,) float32
    p_reach,  # (images of the chunk, side) int32: magnitudes of the tile are below 2**reach
    p_counts,  # (images of the chunk, side) int32 tokens of the tile that take part
    p_sums,  # (images of the chunk, tiles) float64 sums of the distances of pairs
    p_distance,  # (images of the chunk, L, L) float32
    p_least,  # (images of the chunk, L, groups) float32 minima of groups of columns
    p_most,  # (images of the chunk, L, side) float32 largest finite of a tile, or None
    D,
    L,
    side,
    stride_n,
    stride_d,
    INCLUDE_SELF: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,  # tokens and
    BLOCK_F: tl.constexpr,  # features that are looked through at once
):
    """The tiles on the diagonal, as if no token had to be brought into range; norms and reach."""
    i_b, i_m, start, n = locate(p_offsets, L, side)
    if i_m * BLOCK < n:
        o_m = i_m * BLOCK + tl.arange(0, BLOCK)
        b_dot = gram_tile(
            *(x, p_x, start, i_m, i_m, n, 1.0, D, stride_n, stride_d),
            *(False, PRECISION, BLOCK, BLOCK_D),
        )
        b_norm = diagonal_of(b_dot, 1, BLOCK)
        m_valid = o_m < n
        if p_valid is not None:
            m_valid = m_valid & (tl.load(p_valid + start + o_m, mask=m_valid, other=0) != 0)
        m_ok = m_valid & (b_norm < float("inf"))
        most = tl.max(tl.where(m_ok, b_norm, 0.0), axis=0)
        lost = tl.max((m_valid & ~m_ok).to(tl.int32), axis=0)
        # The norm is below 2 ** (its exponent + 1).
        reach = ((most.to(tl.int32, bitcast=True) >> 23) - 127 + 2) >> 1
        tl.store(p_ok + start + o_m, m_ok.to(tl.int8), mask=o_m < n)
        if (lost != 0) | (most < 7.888609052210118e-31):
            # A norm may have left the range of float32, or the token may not be finite.
            tl.debug_barrier()
            largest = 0.0
            for i_s in range(i_m * BLOCK, tl.minimum(n, (i_m + 1) * BLOCK), BLOCK_S):
                o_s = i_s + tl.arange(0, BLOCK_S)
                m_s, b_largest = usable(
                    *(p_x, p_valid, start, o_s, o_s < n, D, stride_n, stride_d),
                    *(p_valid is not None, BLOCK_S, BLOCK_F),
                )
                tl.store(p_ok + start + o_s, m_s.to(tl.int8), mask=o_s < n)
                largest = tl.maximum(largest, tl.max(b_largest, axis=0))
            bits = largest.to(tl.int32, bitcast=True)
            reach = tl.where(bits == 0, NOTHING, (bits >> 23) - 126)
            tl.debug_barrier()
            m_ok = (o_m < n) & (tl.load(p_ok + start + o_m, mask=o_m < n, other=0) != 0)
        tl.store(p_norm + start + o_m, b_norm, mask=o_m < n)
        tl.store(p_reach + i_b * side + i_m, reach)
        tl.store(p_counts + i_b * side + i_m, tl.sum(m_ok.to(tl.int32), axis=0))
        b_other = diagonal_of(b_dot, 0, BLOCK)
        m_other = m_ok
        store_tile(
            *(p_distance, p_least, p_most, p_sums, b_dot, b_norm, b_other, m_ok, m_other),
            *(i_b, i_m, i_m, n, L, side, INCLUDE_SELF, GROUP, BLOCK),
        )


@triton.jit(do_not_specialize=["L", "side", "tiles"])
def distances_fwd_kernel(
    x,
    p_x,
    p_offsets,
    p_ok,
    p_norm,
    p_reach,
    p_sums,
    p_distance,
    p_least,
    p_most,
    D,
    L,
    side,
    tiles,
    stride_n,
    stride_d,
    INCLUDE_SELF: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,  # at least `side`
):
    """The tiles above the diagonal; of an image out of range those on it once more."""
    i_b, i_tile, start, n = locate(p_offsets, L, tiles)
    i_m, i_n = locate_tile(i_tile)
    exponent = image_exponent(p_reach + i_b * side, n, BLOCK, BLOCK_T)
    if (i_n * BLOCK < n) & ((i_m != i_n) | (exponent != 0)):
        o_m, o_n = i_m * BLOCK + tl.arange(0, BLOCK), i_n * BLOCK + tl.arange(0, BLOCK)
        if exponent == 0:
            b_dot = gram_tile(
                *(x, p_x, start, i_m, i_n, n, 1.0, D, stride_n, stride_d),
                *(False, PRECISION, BLOCK, BLOCK_D),
            )
            b_norm_m = tl.load(p_norm + start + o_m, mask=o_m < n, other=0.0)
            b_norm_n = tl.load(p_norm + start + o_n, mask=o_n < n, other=0.0)
        else:
            # Rare: the norms in range are made here too, for each tile again.
            factor = power_of_two(-exponent)
            b_norm_m = tl.zeros((BLOCK,), dtype=tl.float32)
            b_norm_n = tl.zeros((BLOCK,), dtype=tl.float32)
            b_dot = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
            for i_turn in range(3):
                i_row = tl.where(i_turn == 1, i_n, i_m)
                i_column = tl.where(i_turn == 0, i_m, i_n)
                b_dot = gram_tile(
                    *(x, p_x, start, i_row, i_column, n, factor, D, stride_n, stride_d),
                    *(True, PRECISION, BLOCK, BLOCK_D),
                )
                if i_turn == 0:
                    b_norm_m = diagonal_of(b_dot, 1, BLOCK)
                if i_turn == 1:
                    b_norm_n = diagonal_of(b_dot, 0, BLOCK)
            if i_m == i_n:
                tl.store(p_norm + start + o_m, b_norm_m, mask=o_m < n)
        m_m = (o_m < n) & (tl.load(p_ok + start + o_m, mask=o_m < n, other=0) != 0)
        m_n = (o_n < n) & (tl.load(p_ok + start + o_n, mask=o_n < n, other=0) != 0)
        store_tile(
            *(p_distance, p_least, p_most, p_sums, b_dot, b_norm_m, b_norm_n, m_m, m_n),
            *(i_b, i_m, i_n, n, L, side, INCLUDE_SELF, GROUP, BLOCK),
        )


@dataclass(frozen=True)
class KeptRows:
    """Rows of distances of the images of a chunk, and what is known without reading them.

    What stands behind the last token of an image is unwritten.

    Attributes:
        distances: (images, longest, longest) squared distances, infinite where either token takes
            no part; of tokens brought into range.
        least: (images, longest, groups) minima of each GROUP columns.
        most: (images, longest, side) largest finite distance of each tile; None where not asked.
        sums: (images, tiles) float64 sums of the distances between the pairs of a tile.
        counts: (images, side) int32 tokens of each tile on the diagonal that take part.
        reach: (images, side) int32 exponents above the magnitudes of each tile on the diagonal.
        tile: rows and columns of a tile.
    """

    distances: Tensor
    least: Tensor
    most: Tensor | None
    sums: Tensor
    counts: Tensor
    reach: Tensor
    tile: int


def described(x: Tensor, rows: int, columns: int) -> TensorDescriptor | None:
    """A descriptor of (T, D) tokens in blocks; None where their rows do not lie as one needs it."""
    # What is fake lies nowhere; it is taken to be aligned.
    aligned = isinstance(x, FakeTensor) or x.data_ptr() % 16 == 0
    pitch = x.stride(0) * x.element_size()
    if not aligned or x.stride(1) != 1 or pitch % 16 != 0 or x.stride(0) < x.shape[1]:
        return None
    if x.shape[1] == 0 or x.shape[0] + rows >= 2**31:
        return None
    return TensorDescriptor.from_tensor(x, [rows, columns])


def distances(
    x: Tensor,
    valid: Tensor | None,
    chunk: Chunk,
    norm: Tensor,
    include_self: bool,
    farthest: bool = False,
) -> KeptRows:
    """Makes the rows of a chunk, and writes which of its tokens take part.

    Args:
        x: (T, D) tokens of all images.
        valid: (T,) uint8 or None.
        chunk: the images; `ok` is written.
        norm: written; (T,) squared norms of the tokens in range.
        include_self: the minima count the token itself.
        farthest: whether the largest are asked for.
    """
    config, longest = gram_config(x.dtype), chunk.longest
    side = triton.cdiv(longest, config.block_m)
    tiles = side * (side + 1) // 2

    def kept(*sizes, dtype=torch.float32):
        return x.new_empty(chunk.images, *sizes, dtype=dtype)

    rows = KeptRows(
        kept(longest, longest),
        kept(longest, triton.cdiv(longest, GROUP)),
        kept(longest, side) if farthest else None,
        kept(tiles, dtype=torch.float64),
        kept(side, dtype=torch.int32),
        kept(side, dtype=torch.int32),
        config.block_m,
    )
    written = rows.sums, rows.distances, rows.least, rows.most
    known = described(x, config.block_m, config.block_d), x
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
        *known,
        valid,
        chunk.offsets,
        chunk.ok,
        norm,
        rows.reach,
        rows.counts,
        *written,
        x.shape[1],
        longest,
        side,
        *x.stride(),
        BLOCK_S=16,
        BLOCK_F=512 // x.element_size(),
        **options,
    )
    distances_fwd_kernel[(chunk.images * tiles,)](
        *known,
        chunk.offsets,
        chunk.ok,
        norm,
        rows.reach,
        *written,
        x.shape[1],
        longest,
        side,
        tiles,
        *x.stride(),
        BLOCK_T=triton.next_power_of_2(side),
        **options,
    )
    return rows
