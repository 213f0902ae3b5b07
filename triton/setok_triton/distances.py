"""Kernels of the distance rows of a chunk, for images small enough to keep them.

Two launches: the tiles on the diagonal, whose products contain the norms of the tokens, then the
tiles above it, each also written transposed. No later kernel reads the features for statistics: a
token is finite if its norm is, and the sums of the distances give the scale.
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

# Reach (log2 of the magnitude) of a tile without a usable token.
NOTHING = tl.constexpr(-200)
# Images with a reach in this range need no scaling: no square overflows, and no relevant one
# underflows.
MIN_REACH = tl.constexpr(-20)
MAX_REACH = tl.constexpr(50)
# Smaller norms may have lost terms by underflow.
MIN_NORM = tl.constexpr(2.0**-100)


class KeptRows(NamedTuple):
    """Distance rows of the images of a chunk, and their statistics.

    Entries after the last token of an image are unwritten.
    """

    p_distance: Tensor  # (images, L, pitch) as in `Images`, of tokens scaled into range
    p_minima: Tensor  # (images, L, groups) float32 minima of each GROUP columns
    p_maxima: Tensor | None  # (images, L, side) float32 finite maximum of each tile, on request
    p_sums: Tensor  # (images, tiles) float64 sums of the distances of the pairs of a tile
    p_counts: Tensor  # (images, side) int32 tokens of each diagonal tile that are not excluded
    p_reach: Tensor  # (images, side) int32: the magnitudes of these tokens are below 2**reach
    tile: int  # rows and columns of a tile


class ImageRows(NamedTuple):
    """Fields of `KeptRows` for one image without `p_maxima`: Triton 3.6 cannot return None."""

    p_distance: Tensor
    p_minima: Tensor
    p_sums: Tensor
    p_counts: Tensor
    p_reach: Tensor


@triton.jit
def image_exponent(p_reach, n, tile, BLOCK_T):
    """Return the exponent of the power of two that scales the image into range; 0 for none."""
    o_t = tl.arange(0, BLOCK_T)
    # (T,) one reach for each diagonal tile
    b_reach = tl.load(p_reach + o_t, mask=o_t * tile < n, other=NOTHING)
    reach = tl.max(b_reach, axis=0)
    keep = (reach == NOTHING) | ((reach >= MIN_REACH) & (reach <= MAX_REACH))
    return tl.where(keep, 0, tl.minimum(tl.maximum(reach, -126), 126))


@triton.jit
def power_of_two(exponent):
    """Return 2**exponent, for exponents from -126 to 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def gram_tile(blocks, x, at, i_m, i_n, factor, PRECISION, BLOCK, BLOCK_D):
    """Return (M, N) inner products of tokens times `factor` (None: 1); undefined after the image.

    Shape and order of summation never change, so equal tokens give the same bits.
    """
    if blocks is not None:
        b_dot = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        i_row = (at.start + i_m * BLOCK).to(tl.int32)
        i_column = (at.start + i_n * BLOCK).to(tl.int32)
        for i_d in range(0, x.D, BLOCK_D):
            # (M, D) and (N, D)
            b_a, b_b = blocks.load([i_row, i_d]), blocks.load([i_column, i_d])
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
    """Return the left and right half of the columns, or of a vector."""
    HALF: tl.constexpr = b.shape[len(b.shape) - 1] // 2
    if len(b.shape) == 2:
        b = tl.permute(tl.reshape(b, (b.shape[0], 2, HALF)), (0, 2, 1))
    else:
        b = tl.permute(tl.reshape(b, (2, HALF)), (1, 0))
    return tl.split(b)


@triton.jit
def split_columns(b, PARTS):
    """Return a tuple of eight or four equal parts, or one, of the columns or of a vector."""
    if PARTS == 8:
        b_left, b_right = halves(b)
        return split_columns(b_left, 4) + split_columns(b_right, 4)
    elif PARTS == 4:
        b_left, b_right = halves(b)
        b_first, b_second = halves(b_left)
        b_third, b_fourth = halves(b_right)
        return b_first, b_second, b_third, b_fourth
    else:
        return (b,)


@triton.jit
def diagonal_of(b_dot):
    """Return the diagonal (M,) of a square tile."""
    # Part by part, to save registers.
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
def distances_of(b_dot, b_norm_m, b_norm_n):
    """Return (M, N) squared distances from products and norms, which are infinite if excluded."""
    b_d = b_norm_m[:, None] + b_norm_n[None, :] - 2 * b_dot
    # A product with a non-finite token (NaN) also becomes infinite. On the diagonal the norm equals
    # the product, so the distance is exactly 0.
    return tl.maximum(tl.where(b_d < float("inf"), b_d, float("inf")), 0.0)


@triton.jit
def store_columns(
    image,  # ImageRows
    p_maxima,  # maxima of the image, or None
    b_dot,  # (M, W) inner products
    b_norm_m,  # (M,) squared norms, infinite if excluded
    b_norm_n,  # (W,) squared norms, infinite if excluded
    first_m,  # first token of the rows
    first_n,  # first token of the columns
    mirrored,  # also write the transposed tile
    n,
    L,
    INCLUDE_SELF,
    GROUP,
):
    """Write the distances of a part of a tile, and their transpose if `mirrored`.

    Returns their sum in float64, and the finite maximum of each row.
    """
    BLOCK: tl.constexpr = b_dot.shape[0]
    W: tl.constexpr = b_dot.shape[1]
    o_m, o_n = tl.arange(0, BLOCK), tl.arange(0, W)
    b_d = distances_of(b_dot, b_norm_m, b_norm_n)

    # Offsets within a tile fit in 32 bits. Rows are filled with infinity up to a multiple of 16
    # columns: such a mask does not narrow the stores. Transposed tiles never have the last column.
    pitch, end = row_pitch(L), tl.cdiv(n, PITCH) * PITCH
    m_rows, m_columns = (o_m < n - first_m)[:, None], (o_n < n - first_n)[None, :]
    p_tile = image.p_distance + first_m.to(tl.int64) * pitch + first_n
    m_tile = m_rows & (o_n < end - first_n)[None, :]
    tl.store(p_tile + (o_m[:, None] * pitch + o_n[None, :]), b_d, mask=m_tile)
    if mirrored:
        p_tile = image.p_distance + first_n.to(tl.int64) * pitch + first_m
        tl.store(p_tile + (o_n[None, :] * pitch + o_m[:, None]), b_d, mask=m_columns)

    # Sums of 16 integers below 2**20 are exact in float32, and their float64 sums in any order.
    b_finite = tl.where(b_d < float("inf"), b_d, 0.0)
    b_sums = tl.sum(tl.reshape(b_finite, (BLOCK, W // GROUP, GROUP)), axis=2).to(tl.float64)
    # Nested: the outer condition is a compile-time constant, the inner one may not be.
    if p_maxima is not None:  # noqa: SIM102
        if mirrored:
            side = tl.cdiv(L, BLOCK)
            p_down = p_maxima + first_n.to(tl.int64) * side + first_m // BLOCK
            tl.store(p_down + o_n * side, tl.max(b_finite, axis=0), mask=o_n < n - first_n)

    if not INCLUDE_SELF:  # noqa: SIM102
        if not mirrored:
            m_self = (first_m + o_m)[:, None] == (first_n + o_n)[None, :]
            b_d = tl.where(m_self, float("inf"), b_d)
    groups = tl.cdiv(L, GROUP)
    o_down, o_right = tl.arange(0, BLOCK // GROUP), tl.arange(0, W // GROUP)
    b_min = tl.min(tl.reshape(b_d, (BLOCK, W // GROUP, GROUP)), axis=2)  # (M, groups)
    p_minima = image.p_minima + first_m.to(tl.int64) * groups + first_n // GROUP
    m_groups = m_rows & (o_right < groups - first_n // GROUP)[None, :]
    tl.store(p_minima + (o_m[:, None] * groups + o_right[None, :]), b_min, mask=m_groups)
    if mirrored:
        b_below = tl.min(tl.reshape(b_d, (BLOCK // GROUP, GROUP, W)), axis=1)  # (groups, W)
        p_below = image.p_minima + first_n.to(tl.int64) * groups + first_m // GROUP
        tl.store(p_below + (o_n[None, :] * groups + o_down[:, None]), b_below, mask=m_columns)
    return tl.sum(tl.sum(b_sums, axis=1), axis=0), tl.max(b_finite, axis=1)


@triton.jit
def store_tile(rows, b_dot, b_norm_m, b_norm_n, i_b, i_m, i_n, mirrored, n, L, INCLUDE_SELF, GROUP):
    """Turn products into distances, and write them with their minima, maxima and sum.

    For a diagonal tile `mirrored` is the constant False, so that its branches are never compiled:
    Triton 3.6 fails on branches that it finds dead later.
    """
    BLOCK: tl.constexpr = b_dot.shape[0]
    # Part by part: a whole tile with the addresses of both stores would need all registers.
    PARTS: tl.constexpr = 4 if BLOCK >= 128 else 1
    image, p_maxima = rows_of_image(rows, i_b, L, GROUP), None
    if rows.p_maxima is not None:
        p_maxima = farthest_of_image(rows, i_b, L)
    b_dots = split_columns(b_dot, PARTS)
    b_norms = split_columns(b_norm_n, PARTS)
    b_far = tl.zeros((BLOCK,), dtype=tl.float32)
    pairs = tl.zeros((), dtype=tl.float64)
    for i in tl.static_range(PARTS):
        pairs_part, b_far_part = store_columns(
            *(image, p_maxima, b_dots[i], b_norm_m, b_norms[i], i_m * BLOCK),
            *(i_n * BLOCK + i * (BLOCK // PARTS), mirrored, n, L, INCLUDE_SELF, GROUP),
        )
        pairs += pairs_part
        b_far = tl.maximum(b_far, b_far_part)
    # A diagonal tile has each pair twice.
    tl.store(image.p_sums + i_n * (i_n + 1) // 2 + i_m, pairs * tl.where(mirrored, 1.0, 0.5))
    if p_maxima is not None:
        o_m = i_m * BLOCK + tl.arange(0, BLOCK)
        tl.store(p_maxima + o_m.to(tl.int64) * tl.cdiv(L, BLOCK) + i_n, b_far, mask=o_m < n)


@triton.jit
def rows_of_image(rows, i_b, L, GROUP):
    """Return the `ImageRows` of one image of a chunk."""
    side = tl.cdiv(L, rows.tile)
    return ImageRows(
        rows.p_distance + i_b * L * row_pitch(L),
        rows.p_minima + i_b * L * tl.cdiv(L, GROUP),
        rows.p_sums + i_b * (side * (side + 1) // 2),
        rows.p_counts + i_b * side,
        rows.p_reach + i_b * side,
    )


@triton.jit
def farthest_of_image(rows, i_b, L):
    """Return the pointer to the `p_maxima` of one image."""
    return rows.p_maxima + i_b * L * tl.cdiv(L, rows.tile)


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
    BLOCK_S: tl.constexpr,  # tokens of a block of the scan for magnitudes
    BLOCK_F: tl.constexpr,  # features of a block of the scan for magnitudes
):
    """Write the unscaled diagonal tiles, the norms and the reach."""
    side = tl.cdiv(L, BLOCK)
    at = locate(images.p_offsets, L, side)
    i_b, i_m, start, n = at
    if i_m * BLOCK < n:
        o_m = i_m * BLOCK + tl.arange(0, BLOCK)
        b_dot = gram_tile(blocks, x, at, i_m, i_m, None, PRECISION, BLOCK, BLOCK_D)
        b_norm = diagonal_of(b_dot)
        m_valid = flagged(p_valid, start, o_m, o_m < n)
        m_ok = m_valid & (b_norm < float("inf"))
        max_norm = tl.max(tl.where(m_ok, b_norm, 0.0), axis=0)
        lost = tl.max((m_valid & ~m_ok).to(tl.int32), axis=0)
        # The norm is below 2 ** (its exponent + 1).
        reach = ((max_norm.to(tl.int32, bitcast=True) >> 23) - 127 + 2) >> 1
        tl.store(images.p_ok + start + o_m, m_ok.to(tl.int8), mask=o_m < n)
        tl.store(images.p_norm + start + o_m, b_norm, mask=o_m < n)
        if (lost != 0) | (max_norm < MIN_NORM):
            # A norm may have overflowed or underflowed, or a token may be non-finite: scan them.
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
    images,  # with norms, which are rewritten for images out of range
    rows,  # KeptRows
    L,
    INCLUDE_SELF: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,  # at least the tiles of a row
):
    """Write the tiles above the diagonal; for an image out of range also those on it again."""
    side = tl.cdiv(L, BLOCK)
    at = locate(images.p_offsets, L, side * (side + 1) // 2)
    i_b, i_tile, start, n = at
    i_m, i_n = locate_tile(i_tile)
    exponent = image_exponent(rows.p_reach + i_b * side, n, BLOCK, BLOCK_T)
    if (i_n * BLOCK < n) & ((i_m != i_n) | (exponent != 0)):
        o_m, o_n = i_m * BLOCK + tl.arange(0, BLOCK), i_n * BLOCK + tl.arange(0, BLOCK)
        if exponent == 0:
            b_dot = gram_tile(blocks, x, at, i_m, i_n, None, PRECISION, BLOCK, BLOCK_D)
            b_norm_m = tl.load(images.p_norm + start + o_m, mask=o_m < n, other=0.0)  # (M,)
            b_norm_n = tl.load(images.p_norm + start + o_n, mask=o_n < n, other=0.0)  # (N,)
        else:
            # Rare: each tile recomputes the norms of the scaled tokens.
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
    """Refuse 16-bit tokens on Blackwell: Triton 3.7.1 crashes on the diagonal kernel."""
    if not x.is_cuda or x.element_size() > 2 or isinstance(x, FakeTensor):
        return
    major, minor = torch.cuda.get_device_capability(x.device)
    if major >= 10:
        raise RuntimeError(
            "backend='triton' cannot run: expected a compute capability of at most 9.0 for "
            f"{x.dtype}, got {major}.{minor}; use float32 or backend='reference'"
        )


def described(x: Tensor, block: list[int]) -> TensorDescriptor | None:
    """Return a descriptor of (T, D) tokens in blocks, or None if their layout forbids one."""
    # Descriptors swizzle for tensor cores; plain float32 products read columns across the rows.
    if x.dtype == torch.float32 and dot_precision(x.dtype) == "ieee":
        return None
    # A fake tensor has no address; it counts as aligned.
    aligned = isinstance(x, FakeTensor) or x.data_ptr() % 16 == 0
    pitch = x.stride(0) * x.element_size()
    if not aligned or x.stride(1) != 1 or pitch % 16 != 0 or x.stride(0) < x.shape[1]:
        return None
    # Row indices of a descriptor have 32 bits.
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
    """Compute the distance rows of a chunk, and the `ok` flags of its tokens.

    Args:
        x: (T, D) tokens of all images.
        valid: (T,) uint8 flags or None.
        chunk: images of the chunk; its `ok` is written.
        rows: output, distance rows and statistics.
        norm: output, (T,) squared norms of the tokens in range.
        include_self: flag: the minima include the token itself.

    Raises:
        RuntimeError: the kernels cannot be compiled for the device.
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
