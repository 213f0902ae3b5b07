"""What all kernels share: their arguments, where an image lies, distances of tiles and pairs.

Names in the kernels: `i_` index of a program or block, `o_` offsets, `p_` pointers, `b_` blocks of
values, `m_` masks. Tokens of all images stand one after the other; `p_offsets` (B + 1,) says where
each image starts, so one kernel serves padded and packed batches.

Arguments that belong together come in a bundle: a NamedTuple of tensors on the host, of pointers in
a kernel. An absent tensor is None; what would read it is then not compiled. Triton compiles for
every number in a bundle anew where it is 1 or a multiple of 16: of use to D and the strides of
features, whose rows are then read 16 bytes at a time. Whatever counts images, tokens, neighbours or
clusters, or is a stride over them, stays outside, among the `COUNTERS`. Constants are marked
in kernels only: helpers take them as they come.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from setok_triton import configs
from setok_triton.chunk import Chunk

# What no kernel is compiled anew for: counts, and strides over tokens or clusters.
COUNTERS = (
    *("C", "K", "L", "T", "rows", "parts", "step"),
    *("stride_image", "stride_row", "stride_line", "stride_start", "stride_seeds"),
)
# Rows of distances begin on multiples of 64 bytes.
PITCH = tl.constexpr(configs.PITCH)
# Above every index of a token within its image.
FAR_INDEX = tl.constexpr(2**31 - 1)


class Tokens(NamedTuple):
    """Features: a row for each token of all images."""

    p_x: Tensor  # (T, D)
    D: int
    stride_n: int
    stride_d: int

    @classmethod
    def of(cls, x: Tensor) -> "Tokens":
        """Of (T, D)."""
        return cls(x, x.shape[1], *x.stride())


class Images(NamedTuple):
    """Where the images lie, and what is known of them and of their tokens."""

    p_offsets: Tensor  # (B + 1,) int64
    p_ok: Tensor | None = None  # (T,) int8: the token takes part
    p_factor: Tensor | None = None  # (B,) power of two that brings the tokens into range
    p_sigma: Tensor | None = None  # (B,) scale of the squared distances of tokens in range
    p_taking_part: Tensor | None = None  # (B,) int32 number of tokens that do
    p_distance: Tensor | None = None  # (B, L, pitch) squared distances, infinite to others
    p_norm: Tensor | None = None  # (T,) squared norms of the tokens in range

    @classmethod
    def of(cls, chunk: Chunk, norm: Tensor | None = None) -> "Images":
        """Of a chunk, and the squared norms (T,) where its distances are made of products."""
        return cls(
            *(chunk.offsets, chunk.ok, chunk.factor, chunk.sigma, chunk.taking_part),
            *(chunk.distances, norm),
        )


class Clusters(NamedTuple):
    """Decisions and values of a clustering, as `setok::cluster` has them; contiguous."""

    p_knn: Tensor  # (T, K) int64, -1 where absent
    p_parent: Tensor  # (T,) int64, -1 for the top token
    p_seeds: Tensor  # (B, C) int64, -1 where a cluster was not appended
    p_counts: Tensor  # (B,) int64
    p_masks: Tensor  # (B, C + 1, N) float32, or packed (C + 1, T)
    p_density: Tensor  # (T,) float32
    p_delta: Tensor  # (T,) float32
    p_score: Tensor  # (T,) float32
    p_labels: Tensor | None = None  # (T,) int64


class Place(NamedTuple):
    """What a program works on."""

    i_b: tl.tensor  # image
    i_block: tl.tensor  # block or tile of it
    start: tl.tensor  # its first token among those of all images
    n: tl.tensor  # how many tokens it has


@triton.jit
def locate(p_offsets, L, blocks_per_image):
    """The `Place` of this program.

    At most L tokens: grids and rows of distances are made for that many, and a caller's
    `max_seqlen` may be too small.
    """
    # One grid dimension: the others end at 65535, which a batch may exceed.
    i_b = (tl.program_id(0) // blocks_per_image).to(tl.int64)
    i_block = tl.program_id(0) % blocks_per_image
    start = tl.load(p_offsets + i_b)
    n = tl.minimum((tl.load(p_offsets + i_b + 1) - start).to(tl.int32), L)
    return Place(i_b, i_block, start, n)


@triton.jit
def row_pitch(L):
    """Columns that a kept row of distances takes: as many as begin the next one aligned."""
    return tl.cdiv(L, PITCH) * PITCH


@triton.jit
def flagged(p_flags, start, o_n, m_n):
    """Which tokens among `m_n` have a flag; all of them where there are no flags."""
    if p_flags is not None:
        m_n = m_n & (tl.load(p_flags + start + o_n, mask=m_n, other=0) != 0)
    return m_n


@triton.jit
def locate_tile(i_tile):
    """Row i and column j >= i of a tile of the triangle; its number is j (j + 1) / 2 + i."""
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
    row_factor,  # one for all, or (M, 1); None: operands go to the dot as loaded
    column_factor,  # one for all, or (1, N)
    D,
    stride_d,
    PRECISION,
    BLOCK_D,
):
    """(M, N) inner products of scaled tokens; factors are powers of two or 0."""
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    b_dot = tl.zeros((p_rows.shape[0], p_columns.shape[0]), dtype=tl.float32)
    # Whole blocks without a mask over D, which may break the widest loads apart; then the rest.
    i_rest = D // BLOCK_D * BLOCK_D
    for i_d in range(0, i_rest, BLOCK_D):
        o_f = (i_d + o_d) * stride_d
        # (M, D) and (D, N)
        b_a = tl.load(p_rows[:, None] + o_f[None, :], mask=m_rows[:, None], other=0.0)
        b_b = tl.load(p_columns[None, :] + o_f[:, None], mask=m_columns[None, :], other=0.0)
        if row_factor is not None:
            b_a = (b_a * row_factor).to(b_a.dtype)
            b_b = (b_b * column_factor).to(b_b.dtype)
        b_dot = tl.dot(b_a, b_b, b_dot, input_precision=PRECISION)
    if i_rest < D:
        o_f = (i_rest + o_d) * stride_d
        m_d = i_rest + o_d < D
        m_a, m_b = m_rows[:, None] & m_d[None, :], m_columns[None, :] & m_d[:, None]
        b_a = tl.load(p_rows[:, None] + o_f[None, :], mask=m_a, other=0.0)
        b_b = tl.load(p_columns[None, :] + o_f[:, None], mask=m_b, other=0.0)
        if row_factor is not None:
            b_a = (b_a * row_factor).to(b_a.dtype)
            b_b = (b_b * column_factor).to(b_b.dtype)
        b_dot = tl.dot(b_a, b_b, b_dot, input_precision=PRECISION)
    return b_dot


@triton.jit
def products(p_rows, p_columns, m_rows, m_columns, factor, D, stride_d, PRECISION, BLOCK_D):
    """`dot_tile` of one factor for all; a factor of 1 scales nothing."""
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
    """(M, N) squared distances of tokens o_m and o_n, infinite where either takes no part.

    Read where the images have rows of distances, else made of norms and inner products. Exactly 0
    between equal tokens: both are summed in the same order.
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
    """(N,) squared distances of pairs: of each of o_i, or of one token, and each of o_j.

    Read where the images have rows of distances, else summed from the differences.
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
            b_apart = b_i * factor - b_j * factor
            b_d += b_apart * b_apart
        b_sum = tl.sum(b_d, axis=1)
    return b_sum


@triton.jit
def farthest(x, images, at, token, factor, L, BLOCK_N, BLOCK_D):
    """Squared distance to the token farthest from one, and which it is, ties lowest index."""
    b_farthest = tl.full((BLOCK_N,), -1.0, dtype=tl.float32)
    b_first = tl.full((BLOCK_N,), FAR_INDEX, dtype=tl.int32)
    b_token = tl.zeros((BLOCK_N,), dtype=tl.int32) + token
    for i_j in range(0, at.n, BLOCK_N):
        o_j = i_j + tl.arange(0, BLOCK_N)
        m_j = flagged(images.p_ok, at.start, o_j, o_j < at.n)
        b_d = pair_distance(x, images, at, b_token, o_j, m_j, factor, L, BLOCK_D)
        b_d = tl.where(m_j, b_d, -1.0)
        b_first = tl.where(b_d > b_farthest, o_j, b_first)
        b_farthest = tl.maximum(b_farthest, b_d)
    largest = tl.max(b_farthest, axis=0)
    return largest, tl.min(tl.where(b_farthest == largest, b_first, FAR_INDEX), axis=0)
