"""What all kernels share: where an image lies, tiles of distances, single pairs.

Names in the kernels: `i_` index of a program or block, `o_` offsets, `p_` pointers, `b_` blocks of
values, `m_` masks. Tokens of all images stand one after the other, in rows `stride_n` apart;
`p_offsets` (B + 1,) says where each image starts, so one kernel serves padded and packed batches.
"""

import triton
import triton.language as tl

# Above every index of a token within its image.
FAR_INDEX = tl.constexpr(2**31 - 1)


@triton.jit
def locate(p_offsets, L, blocks_per_image):
    """Image and block of this program, where the image starts, and how many tokens it has.

    At most L: grids and rows of distances are made for that many, and a caller's `max_seqlen` may
    be too small.
    """
    # One grid dimension: the others end at 65535, which a batch may exceed.
    i_b = (tl.program_id(0) // blocks_per_image).to(tl.int64)
    i_block = tl.program_id(0) % blocks_per_image
    start = tl.load(p_offsets + i_b)
    n = tl.minimum((tl.load(p_offsets + i_b + 1) - start).to(tl.int32), L)
    return i_b, i_block, start, n


@triton.jit
def locate_tile(i_tile):
    """Row i and column j >= i of a tile of the triangle; its number is j (j + 1) / 2 + i."""
    i_n = ((tl.sqrt(8.0 * i_tile.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    i_n = tl.where(i_n * (i_n + 1) // 2 > i_tile, i_n - 1, i_n)
    i_n = tl.where((i_n + 1) * (i_n + 2) // 2 <= i_tile, i_n + 1, i_n)
    return i_tile - i_n * (i_n + 1) // 2, i_n


@triton.jit
def dot_tile(
    p_rows,  # (BLOCK_M,) first feature of each row
    p_columns,  # (BLOCK_N,)
    m_rows,
    m_columns,
    row_factor,  # one for all, or (BLOCK_M, 1)
    column_factor,  # one for all, or (1, BLOCK_N)
    D,
    stride_d,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) inner products of scaled tokens; factors are powers of two or 0."""
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    b_dot = tl.zeros((p_rows.shape[0], p_columns.shape[0]), dtype=tl.float32)
    # Whole blocks without a mask over D, which would break the widest loads apart; then the rest.
    i_rest = D // BLOCK_D * BLOCK_D
    for i_d in range(0, i_rest, BLOCK_D):
        o_f = (i_d + o_d) * stride_d
        b_a = tl.load(p_rows[:, None] + o_f[None, :], mask=m_rows[:, None], other=0.0)
        b_b = tl.load(p_columns[None, :] + o_f[:, None], mask=m_columns[None, :], other=0.0)
        if SCALED:
            b_a = (b_a * row_factor).to(b_a.dtype)
            b_b = (b_b * column_factor).to(b_b.dtype)
        b_dot = tl.dot(b_a, b_b, b_dot, input_precision=PRECISION)
    if i_rest < D:
        o_f = (i_rest + o_d) * stride_d
        m_d = i_rest + o_d < D
        m_a, m_b = m_rows[:, None] & m_d[None, :], m_columns[None, :] & m_d[:, None]
        b_a = tl.load(p_rows[:, None] + o_f[None, :], mask=m_a, other=0.0)
        b_b = tl.load(p_columns[None, :] + o_f[:, None], mask=m_b, other=0.0)
        if SCALED:
            b_a = (b_a * row_factor).to(b_a.dtype)
            b_b = (b_b * column_factor).to(b_b.dtype)
        b_dot = tl.dot(b_a, b_b, b_dot, input_precision=PRECISION)
    return b_dot


@triton.jit
def products(
    p_rows,
    p_columns,
    m_rows,
    m_columns,
    factor,
    D,
    stride_d,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`dot_tile`, without scaling where the factor is 1: operands then go to the dot as loaded."""
    if factor == 1.0:
        b_dot = dot_tile(
            p_rows,
            p_columns,
            m_rows,
            m_columns,
            factor,
            factor,
            D,
            stride_d,
            False,
            PRECISION,
            BLOCK_D,
        )
    else:
        b_dot = dot_tile(
            p_rows,
            p_columns,
            m_rows,
            m_columns,
            factor,
            factor,
            D,
            stride_d,
            True,
            PRECISION,
            BLOCK_D,
        )
    return b_dot


@triton.jit
def distance_tile(
    p_x,
    p_norm,
    p_ok,
    p_distance,  # (images of the chunk, L, L), where DENSE
    start,
    i_b,  # number of the image
    o_m,  # (BLOCK_M,) tokens of the rows
    o_n,  # (BLOCK_N,) tokens of the columns
    n,
    factor,
    D,
    L,
    stride_n,
    stride_d,
    DENSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) squared distances, infinite where either token takes no part.

    Exactly 0 between equal tokens: norms and inner products are summed in the same order.
    """
    m_m, m_n = o_m < n, o_n < n
    if DENSE:
        p_row = p_distance + (i_b * L + o_m.to(tl.int64)) * L
        m_tile = m_m[:, None] & m_n[None, :]
        b_d = tl.load(p_row[:, None] + o_n[None, :], mask=m_tile, other=float("inf"))
    else:
        p_rows, p_columns = p_x + (start + o_m) * stride_n, p_x + (start + o_n) * stride_n
        b_dot = products(p_rows, p_columns, m_m, m_n, factor, D, stride_d, PRECISION, BLOCK_D)
        b_norm_m = tl.load(p_norm + start + o_m, mask=m_m, other=0.0)
        b_norm_n = tl.load(p_norm + start + o_n, mask=m_n, other=0.0)
        m_m = m_m & (tl.load(p_ok + start + o_m, mask=m_m, other=0) != 0)
        m_n = m_n & (tl.load(p_ok + start + o_n, mask=m_n, other=0) != 0)
        b_d = b_norm_m[:, None] + b_norm_n[None, :] - 2 * b_dot
        b_d = tl.where(b_d > 0, b_d, 0.0)
        b_d = tl.where(o_m[:, None] == o_n[None, :], 0.0, b_d)
        b_d = tl.where(m_m[:, None] & m_n[None, :], b_d, float("inf"))
    return b_d


@triton.jit
def pair_distance(
    p_x,
    p_distance,
    start,
    i_b,
    o_i,  # (BLOCK,) tokens, or one for all
    o_j,  # (BLOCK,) tokens
    m_pair,
    factor,
    D,
    L,
    stride_n,
    stride_d,
    DENSE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(BLOCK,) squared distances of single pairs: read, or summed from the differences."""
    if DENSE:
        p_pair = p_distance + (i_b * L + o_i.to(tl.int64)) * L + o_j
        b_sum = tl.load(p_pair, mask=m_pair, other=0.0)
    else:
        b_d = tl.zeros((o_j.shape[0], BLOCK_D), dtype=tl.float32)
        o_d = tl.arange(0, BLOCK_D).to(tl.int64)
        p_i, p_j = p_x + (start + o_i) * stride_n, p_x + (start + o_j) * stride_n
        for i_d in range(0, D, BLOCK_D):
            m_d = m_pair[:, None] & (i_d + o_d < D)[None, :]
            o_f = ((i_d + o_d) * stride_d)[None, :]
            b_i = tl.load(p_i[:, None] + o_f, mask=m_d, other=0.0).to(tl.float32)
            b_j = tl.load(p_j[:, None] + o_f, mask=m_d, other=0.0).to(tl.float32)
            b_apart = b_i * factor - b_j * factor
            b_d += b_apart * b_apart
        b_sum = tl.sum(b_d, axis=1)
    return b_sum


@triton.jit
def farthest(
    p_x,
    p_ok,
    p_distance,
    start,
    i_b,
    token,
    n,
    factor,
    D,
    L,
    stride_n,
    stride_d,
    DENSE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Squared distance to the farthest token, and which it is, ties lowest index."""
    b_farthest = tl.full((BLOCK_N,), -1.0, dtype=tl.float32)
    b_first = tl.full((BLOCK_N,), FAR_INDEX, dtype=tl.int32)
    for i_j in range(0, n, BLOCK_N):
        o_j = i_j + tl.arange(0, BLOCK_N)
        m_j = (o_j < n) & (tl.load(p_ok + start + o_j, mask=o_j < n, other=0) != 0)
        b_d = pair_distance(
            p_x,
            p_distance,
            start,
            i_b,
            tl.zeros((BLOCK_N,), dtype=tl.int32) + token,
            o_j,
            m_j,
            factor,
            D,
            L,
            stride_n,
            stride_d,
            DENSE,
            BLOCK_D,
        )
        b_d = tl.where(m_j, b_d, -1.0)
        b_first = tl.where(b_d > b_farthest, o_j, b_first)
        b_farthest = tl.maximum(b_farthest, b_d)
    largest = tl.max(b_farthest, axis=0)
    return largest, tl.min(tl.where(b_farthest == largest, b_first, FAR_INDEX), axis=0)
