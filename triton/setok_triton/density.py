"""Kernels of the nearest neighbours and the local density (SeTok, Eq. 1)."""

import dataclasses

import triton
import triton.language as tl
from torch import Tensor

from setok_triton.bands import band_neighbours
from setok_triton.chunk import Chunk
from setok_triton.common import COUNTERS, FAR_INDEX, Images, Tokens, distance_tile, flagged, locate
from setok_triton.configs import dot_precision, tile_config, token_config
from setok_triton.features import norms
from setok_triton.rows import Rows

# Longest neighbour list that bands of tiles fill; longer ones need too many slots.
MAX_LISTED = 16


@triton.jit
def take_nearest(
    b_list,  # (BLOCK_M, BLOCK_K) distances, infinite where empty
    b_index,  # (BLOCK_M, BLOCK_K) tokens of the list
    b_d,  # (BLOCK_M, BLOCK_N) candidates, all of higher index than the list
    o_n,  # (BLOCK_N,) tokens of the candidates
    K,
    BLOCK_K,
):
    """Return the K nearest of list and candidates, unordered; ties go to the lowest index."""
    o_k = tl.arange(0, BLOCK_K)
    m_k = (o_k < K)[None, :]
    b_worst = tl.max(tl.where(m_k, b_list, -float("inf")), axis=1)
    b_min = tl.min(b_d, axis=1)
    # Most tiles have no nearer token for any row.
    while tl.max((b_min < b_worst).to(tl.int32), axis=0) > 0:
        m_take = b_min < b_worst
        m_min = b_d == b_min[:, None]
        b_column = tl.min(tl.where(m_min, o_n[None, :], FAR_INDEX), axis=1)
        # Replace the farthest entry of the highest index; the slot number makes empty ones unique.
        m_worst = (b_list == b_worst[:, None]) & m_k
        b_rank = tl.where(m_worst, b_index.to(tl.int64) * BLOCK_K + o_k[None, :], -1)
        m_slot = (b_rank == tl.max(b_rank, axis=1)[:, None]) & m_worst & m_take[:, None]
        b_list = tl.where(m_slot, b_min[:, None], b_list)
        b_index = tl.where(m_slot, b_column[:, None], b_index)
        b_d = tl.where((o_n[None, :] == b_column[:, None]) & m_take[:, None], float("inf"), b_d)
        b_worst = tl.max(tl.where(m_k, b_list, -float("inf")), axis=1)
        b_min = tl.min(b_d, axis=1)
    return b_list, b_index


@triton.jit(do_not_specialize=COUNTERS)
def neighbours_fwd_kernel(
    x,
    images,
    p_knn,  # (T, K) int64
    p_farthest,  # (T,) float32 squared distance to the farthest token, or None
    rows,  # Rows to search, or None for all
    K,
    L,
    INCLUDE_SELF: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write the K nearest tokens of BLOCK_M tokens, ascending, ties lowest index, -1 for none."""
    at = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_M))
    i_b, i_m, start, n = at
    o_m, count = i_m * BLOCK_M + tl.arange(0, BLOCK_M), n
    if rows is not None:
        count = tl.load(rows.p_count + i_b)
        o_m = tl.load(rows.p_tokens + start + o_m, mask=o_m < count, other=FAR_INDEX)
    o_k = tl.arange(0, BLOCK_K)
    factor = tl.load(images.p_factor + i_b)
    b_list = tl.full((BLOCK_M, BLOCK_K), float("inf"), dtype=tl.float32)
    b_index = tl.full((BLOCK_M, BLOCK_K), 0, dtype=tl.int32)
    b_farthest = tl.zeros((BLOCK_M,), dtype=tl.float32)
    if i_m * BLOCK_M < count:
        for i_n in range(0, n, BLOCK_N):
            o_n = i_n + tl.arange(0, BLOCK_N)
            b_d = distance_tile(x, images, at, o_m, o_n, factor, L, PRECISION, BLOCK_D)  # (M, N)
            if p_farthest is not None:
                b_far = tl.max(tl.where(b_d < float("inf"), b_d, 0.0), axis=1)
                b_farthest = tl.maximum(b_farthest, b_far)
            if not INCLUDE_SELF:
                b_d = tl.where(o_m[:, None] == o_n[None, :], float("inf"), b_d)
            b_list, b_index = take_nearest(b_list, b_index, b_d, o_n, K, BLOCK_K)
    if p_farthest is not None:
        tl.store(p_farthest + start + o_m, b_farthest, mask=o_m < n)
    b_list = tl.where((o_k < K)[None, :], b_list, float("inf"))
    p_out = p_knn + (start + o_m) * K
    for i_k in range(K):
        b_min = tl.min(b_list, axis=1)
        m_min = (b_list == b_min[:, None]) & (b_list < float("inf"))
        b_first = tl.min(tl.where(m_min, b_index, FAR_INDEX), axis=1)
        b_out = tl.where(b_min < float("inf"), b_first, -1)
        tl.store(p_out + i_k, b_out.to(tl.int64), mask=o_m < n)
        b_list = tl.where(m_min & (b_index == b_first[:, None]), float("inf"), b_list)


@triton.jit(do_not_specialize=COUNTERS)
def density_fwd_kernel(
    x,
    images,
    p_knn,  # (T, K) int64
    p_noise,  # (T,) float32 or None
    p_density,  # (T,) float32
    K,
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write rho = exp(-sigma * mean distance to the neighbours); 1 without any, 0 if excluded.

    The distances are summed from differences, so a replay needs no products of all pairs.
    """
    at = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_N))
    i_b, i_n, start, n = at
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    factor, sigma = tl.load(images.p_factor + i_b), tl.load(images.p_sigma + i_b)
    o_d, o_k = tl.arange(0, BLOCK_D).to(tl.int64), tl.arange(0, BLOCK_K)[None, :]
    p_list = p_knn + (start + o_n) * K
    b_listed = tl.load(p_list[:, None] + o_k, mask=m_n[:, None] & (o_k < K), other=-1)  # (N, K)
    b_listed = b_listed.to(tl.int32)
    b_found = tl.sum((b_listed >= 0).to(tl.float32), axis=1)
    b_sums = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    # Features outside, so that a token's own are read once for all neighbours.
    for i_d in range(0, x.D, BLOCK_D):
        m_d, o_f = (i_d + o_d < x.D)[None, :], ((i_d + o_d) * x.stride_d)[None, :]
        p_own = x.p_x + ((start + o_n) * x.stride_n)[:, None] + o_f
        b_own = tl.load(p_own, mask=m_n[:, None] & m_d, other=0.0).to(tl.float32) * factor  # (N, D)
        for i_k in range(K):
            # (N,) neighbour i_k of each token, not loaded again, which would delay its features
            b_other = tl.max(tl.where(o_k == i_k, b_listed, -1), axis=1)
            p_other = x.p_x + ((start + b_other) * x.stride_n)[:, None] + o_f
            m_pair = (b_other >= 0)[:, None] & m_d
            b_diff = tl.load(p_other, mask=m_pair, other=0.0).to(tl.float32) * factor - b_own
            b_square = tl.where(b_other >= 0, tl.sum(b_diff * b_diff, axis=1), 0.0)
            b_sums = tl.where(o_k == i_k, b_sums + b_square[:, None], b_sums)
    b_sum = tl.sum(b_sums, axis=1)
    # Scaling the sum, not the terms, keeps sums of small integers exact, so ties stay ties.
    b_density = tl.exp(-sigma * tl.div_rn(b_sum, tl.maximum(b_found, 1.0)))
    if p_noise is not None:
        b_density += tl.load(p_noise + start + o_n, mask=m_n, other=0.0)  # (N,)
    m_ok = flagged(images.p_ok, start, o_n, m_n)
    tl.store(p_density + start + o_n, tl.where(m_ok, b_density, 0.0), mask=m_n)


def neighbours(
    x: Tensor,
    norm: Tensor,
    chunk: Chunk,
    knn: Tensor,
    include_self: bool,
    farthest: Tensor | None,
    full: Rows,
) -> None:
    """Write the nearest tokens of images without kept rows, and the norms of their tokens.

    Args:
        x: (T, D) tokens of all images.
        norm: output, (T,) squared norms of the tokens in range.
        chunk: all images.
        knn: output, (T, K) int64 nearest tokens, ascending, ties lowest index, -1 for none.
        include_self: flag: a token is one of its own neighbours.
        farthest: output or None, (T,) float32 squared distance to the farthest token.
        full: initially empty; buffer of the rows that are searched on their own.
    """
    if knn.shape[1] <= MAX_LISTED:
        band_neighbours(x, norm, chunk, knn, include_self, farthest, full)
        search_rows(x, norm, chunk, knn, include_self, None, full)
    else:
        norms(x, chunk.ok, chunk.offsets, chunk.longest, chunk.factor, norm)
        search_rows(x, norm, chunk, knn, include_self, farthest, None)


def search_rows(
    x: Tensor,
    norm: Tensor,
    chunk: Chunk,
    knn: Tensor,
    include_self: bool,
    farthest: Tensor | None,
    rows: Rows | None,
) -> None:
    """Write the nearest tokens of some rows, or all, from their products with all tokens.

    Arguments are as in `neighbours`; `norm` is an input.
    """
    slots = max(2, triton.next_power_of_2(knn.shape[1]))
    config = tile_config(x.dtype)
    if slots >= 64:
        # A long list leaves no registers for a second pass over a whole tile.
        config = dataclasses.replace(config, block_n=config.block_n // 2)
    blocks = triton.cdiv(chunk.longest, config.block_m)
    neighbours_fwd_kernel[(chunk.images * blocks,)](
        *(Tokens.of(x), Images.of(chunk, norm), knn, farthest, rows),
        *(knn.shape[1], chunk.longest),
        INCLUDE_SELF=include_self,
        PRECISION=dot_precision(x.dtype),
        BLOCK_K=slots,
        **config.launch(),
    )


def density(x: Tensor, chunk: Chunk, knn: Tensor, out: Tensor, noise: Tensor | None = None) -> None:
    """Write the density of given neighbours, plus the noise (T,), into `out` (T,)."""
    config = token_config(x.dtype)
    if knn.shape[1] > 32:
        # The sums of a long list take registers.
        config = dataclasses.replace(config, block_n=config.block_n // 2)
    blocks = triton.cdiv(chunk.longest, config.block_n)
    density_fwd_kernel[(chunk.images * blocks,)](
        *(Tokens.of(x), Images.of(chunk), knn, noise, out, knn.shape[1], chunk.longest),
        BLOCK_K=triton.next_power_of_2(knn.shape[1]),
        **config.launch(),
        # Without a limit the assembler spills a few registers to fit one more program.
        maxnreg=128,
    )
