"""Arguments and helpers of all kernels: image offsets, distances of tiles and of pairs.

Names in the kernels: `i_` index of a program or block, `o_` offsets, `p_` pointers, `b_` blocks of
values, `m_` masks. In comments N, M, C, D are the sides of a block. Tokens of all images are
concatenated; `p_offsets` (B + 1,) has the start of each image, so one kernel serves padded and
packed batches. A token is excluded if it is masked or has a non-finite feature.

Related arguments come in a bundle: a NamedTuple of tensors on the host, of pointers in a kernel. An
absent tensor is None, and the code that reads it is not compiled. Triton specialises a kernel on
every integer in a bundle that is 1 or a multiple of 16. That is useful for D and the feature
strides, whose rows are then read 16 bytes at a time. Counts of images, tokens, neighbours and
clusters, and strides over them, stay outside, among the `COUNTERS`. Only kernels annotate
`tl.constexpr`; helpers take constants as they come.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from setok_triton import configs
from setok_triton.chunk import Chunk

# Arguments without specialisation: counts, and strides over tokens or clusters.
COUNTERS = (
    *("C", "K", "L", "T", "rows", "parts", "step", "first", "width", "size"),
    *("stride_image", "stride_row", "stride_line", "stride_start", "stride_seeds"),
)
# Distance rows begin on multiples of 64 bytes.
PITCH = tl.constexpr(configs.PITCH)
# Larger than any index of a token within its image.
FAR_INDEX = tl.constexpr(2**31 - 1)


class Tokens(NamedTuple):
    """Features of the tokens of all images, one row each."""

    p_x: Tensor  # (T, D)
    D: int
    stride_n: int
    stride_d: int

    @classmethod
    def of(cls, x: Tensor) -> "Tokens":
        """Build the bundle from (T, D) features."""
        return cls(x, x.shape[1], *x.stride())


class Images(NamedTuple):
    """Offsets of the images, and statistics of images and tokens."""

    p_offsets: Tensor  # (B + 1,) int64
    p_ok: Tensor | None = None  # (T,) int8, 0 for excluded tokens
    p_factor: Tensor | None = None  # (B,) power of two that scales the tokens into range
    p_sigma: Tensor | None = None  # (B,) scale of the squared distances of tokens in range
    p_num_ok: Tensor | None = None  # (B,) int32 number of tokens that are not excluded
    p_distance: Tensor | None = None  # (B, L, pitch) squared distances, infinite if excluded
    p_norm: Tensor | None = None  # (T,) squared norms of the tokens in range, see `features.norms`

    @classmethod
    def of(cls, chunk: Chunk, norm: Tensor | None = None) -> "Images":
        """Build the bundle from a chunk, and norms (T,) if distances come from products."""
        return cls(
            *(chunk.offsets, chunk.ok, chunk.factor, chunk.sigma, chunk.num_ok),
            *(chunk.distances, norm),
        )


class Clusters(NamedTuple):
    """Decisions and values of a clustering, as in `setok::cluster`; contiguous."""

    p_knn: Tensor  # (T, K) int64, -1 for none
    p_parent: Tensor  # (T,) int64, -1 for the top token
    p_seeds: Tensor  # (B, C) int64, -1 for none
    p_counts: Tensor  # (B,) int64
    p_masks: Tensor  # (B, C + 1, N) float32, or packed (C + 1, T)
    p_density: Tensor  # (T,) float32
    p_delta: Tensor  # (T,) float32
    p_score: Tensor  # (T,) float32
    p_labels: Tensor | None = None  # (T,) int64


class Location(NamedTuple):
    """Image and block of a program."""

    i_b: tl.tensor  # image
    i_block: tl.tensor  # block or tile of the image
    start: tl.tensor  # first token of the image among all tokens
    n: tl.tensor  # number of tokens of the image


@triton.jit
def locate(p_offsets, L, blocks_per_image):
    """Return the `Location` of this program.

    Images are cut to L tokens, the size of the grids and distance rows, because a caller's
    `max_seqlen` may be too small.
    """
    # One grid dimension: the others are limited to 65535, which a batch may exceed.
    i_b = (tl.program_id(0) // blocks_per_image).to(tl.int64)
    i_block = tl.program_id(0) % blocks_per_image
    start = tl.load(p_offsets + i_b)
    n = tl.minimum((tl.load(p_offsets + i_b + 1) - start).to(tl.int32), L)
    return Location(i_b, i_block, start, n)


@triton.jit
def row_pitch(L):
    """Return the columns of a distance row, rounded up so that the next row is aligned."""
    return tl.cdiv(L, PITCH) * PITCH


@triton.jit
def flagged(p_flags, start, o_n, m_n):
    """Return the tokens of mask `m_n` with a non-zero flag; all of them without flags."""
    if p_flags is not None:
        # (N,)
        m_n = m_n & (tl.load(p_flags + start + o_n, mask=m_n, other=0) != 0)
    return m_n


@triton.jit
def locate_tile(i_tile):
    """Return row i and column j >= i of triangle tile `i_tile` = j (j + 1) / 2 + i."""
    i_n = ((tl.sqrt(8.0 * i_tile.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    i_n = tl.where(i_n * (i_n + 1) // 2 > i_tile, i_n - 1, i_n)
    i_n = tl.where((i_n + 1) * (i_n + 2) // 2 <= i_tile, i_n + 1, i_n)
    return i_tile - i_n * (i_n + 1) // 2, i_n


@triton.jit
def dot_tile(
    p_rows,  # (M,) first feature of each row
    p_columns,  # (N,)
    m_rows,
    m_columns,
    row_factor,  # scalar or (M, 1); None: operands go to the dot as loaded
    column_factor,  # scalar or (1, N)
    D,
    stride_d,
    PRECISION,
    BLOCK_D,
):
    """Return (M, N) inner products of scaled tokens; factors are powers of two or 0."""
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    b_dot = tl.zeros((p_rows.shape[0], p_columns.shape[0]), dtype=tl.float32)
    # Whole blocks without a mask over D, which would split the widest loads; then the rest.
    i_rest = D // BLOCK_D * BLOCK_D
    for i_d in range(0, i_rest, BLOCK_D):
        o_f = (i_d + o_d) * stride_d
        # (M, D)
        b_a = tl.load(p_rows[:, None] + o_f[None, :], mask=m_rows[:, None], other=0.0)
        # (D, N)
        b_b = tl.load(p_columns[None, :] + o_f[:, None], mask=m_columns[None, :], other=0.0)
        if row_factor is not None:
            b_a = (b_a * row_factor).to(b_a.dtype)
            b_b = (b_b * column_factor).to(b_b.dtype)
        b_dot = tl.dot(b_a, b_b, b_dot, input_precision=PRECISION)
    if i_rest < D:
        o_f = (i_rest + o_d) * stride_d
        m_d = i_rest + o_d < D
        m_a, m_b = m_rows[:, None] & m_d[None, :], m_columns[None, :] & m_d[:, None]
        # (M, D) and (D, N), the last D % BLOCK_D features
        b_a = tl.load(p_rows[:, None] + o_f[None, :], mask=m_a, other=0.0)
        b_b = tl.load(p_columns[None, :] + o_f[:, None], mask=m_b, other=0.0)
        if row_factor is not None:
            b_a = (b_a * row_factor).to(b_a.dtype)
            b_b = (b_b * column_factor).to(b_b.dtype)
        b_dot = tl.dot(b_a, b_b, b_dot, input_precision=PRECISION)
    return b_dot


@triton.jit
def products(p_rows, p_columns, m_rows, m_columns, factor, D, stride_d, PRECISION, BLOCK_D):
    """Return `dot_tile` with one factor; a factor of 1 skips the scaling."""
    if factor == 1.0:
        b_dot = dot_tile(
            p_rows, p_columns, m_rows, m_columns, None, None, D, stride_d, PRECISION, BLOCK_D
        )
    else:
        b_dot = dot_tile(
            p_rows, p_columns, m_rows, m_columns, factor, factor, D, stride_d, PRECISION, BLOCK_D
        )
    return b_dot


@triton.jit
def distance_tile(x, images, at, o_m, o_n, factor, L, PRECISION, BLOCK_D):
    """Return (M, N) squared distances of tokens o_m and o_n, infinite if either is excluded.

    They are read from the distance rows if kept, else computed from norms and inner products. Equal
    tokens have distance exactly 0, because norm and product have the same order of summation.
    """
    m_m, m_n = o_m < at.n, o_n < at.n
    if images.p_distance is not None:
        p_row = images.p_distance + (at.i_b * L + o_m.to(tl.int64)) * row_pitch(L)
        m_tile = m_m[:, None] & m_n[None, :]
        b_d = tl.load(p_row[:, None] + o_n[None, :], mask=m_tile, other=float("inf"))  # (M, N)
    else:
        p_rows = x.p_x + (at.start + o_m) * x.stride_n
        p_columns = x.p_x + (at.start + o_n) * x.stride_n
        b_dot = products(p_rows, p_columns, m_m, m_n, factor, x.D, x.stride_d, PRECISION, BLOCK_D)
        b_norm_m = tl.load(images.p_norm + at.start + o_m, mask=m_m, other=0.0)  # (M,)
        b_norm_n = tl.load(images.p_norm + at.start + o_n, mask=m_n, other=0.0)  # (N,)
        m_m = flagged(images.p_ok, at.start, o_m, m_m)
        m_n = flagged(images.p_ok, at.start, o_n, m_n)
        b_d = b_norm_m[:, None] + b_norm_n[None, :] - 2 * b_dot
        b_d = tl.where(b_d > 0, b_d, 0.0)
        b_d = tl.where(o_m[:, None] == o_n[None, :], 0.0, b_d)
        b_d = tl.where(m_m[:, None] & m_n[None, :], b_d, float("inf"))
    return b_d


@triton.jit
def pair_distance(x, images, at, o_i, o_j, m_pair, factor, L, BLOCK_D):
    """Return (N,) squared distances of the pairs of o_i (N,), or of one token, and o_j (N,).

    They are read from the distance rows if kept, else summed from the differences.
    """
    if images.p_distance is not None:
        p_pair = images.p_distance + (at.i_b * L + o_i.to(tl.int64)) * row_pitch(L) + o_j
        b_sum = tl.load(p_pair, mask=m_pair, other=0.0)  # (N,)
    else:
        b_d = tl.zeros((o_j.shape[0], BLOCK_D), dtype=tl.float32)
        o_d = tl.arange(0, BLOCK_D).to(tl.int64)
        p_i = x.p_x + (at.start + o_i) * x.stride_n
        p_j = x.p_x + (at.start + o_j) * x.stride_n
        for i_d in range(0, x.D, BLOCK_D):
            m_d = m_pair[:, None] & (i_d + o_d < x.D)[None, :]
            o_f = ((i_d + o_d) * x.stride_d)[None, :]
            # (N, D) each
            b_i = tl.load(p_i[:, None] + o_f, mask=m_d, other=0.0).to(tl.float32)
            b_j = tl.load(p_j[:, None] + o_f, mask=m_d, other=0.0).to(tl.float32)
            b_diff = b_i * factor - b_j * factor
            b_d += b_diff * b_diff
        b_sum = tl.sum(b_d, axis=1)
    return b_sum
