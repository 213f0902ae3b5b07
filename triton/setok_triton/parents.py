"""Kernels of the nearest preceding token of each token (SeTok, Eq. 2).

A token's parent is the nearest token that precedes it. The neighbour lists have it for most tokens;
only local peaks, which precede all of their neighbours, are compared with all tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.bands import load_norms
from setok_triton.chunk import Chunk
from setok_triton.common import COUNTERS, FAR_INDEX, Images, Tokens, flagged, locate, products
from setok_triton.configs import dot_precision, gram_config
from setok_triton.distances import distances_of
from setok_triton.rows import Rows, append

# No key of a distance and a token is larger.
NO_KEY = tl.constexpr(2**63 - 1)
# Tiles that a program compares its peaks with in one turn.
TURN = 2


@triton.jit
def precedes(b_other, o_other, b_own, o_own):
    """Return True if the other token has a higher density, or equal density and lower index."""
    return (b_other > b_own) | ((b_other == b_own) & (o_other < o_own))


@triton.jit
def first_preceding(p_knn, p_density, b_rho, o_n, m_ok, i_k, K):
    """Return the first of the eight neighbours from i_k on that precedes each token, else -1.

    The eight neighbours are loaded at once, then their densities: two waits, not sixteen.
    """
    o_k = (i_k + tl.arange(0, 8))[None, :]
    p_list = p_knn + (o_n.to(tl.int64) * K)[:, None] + o_k
    b_j = tl.load(p_list, mask=m_ok[:, None] & (o_k < K), other=-1).to(tl.int32)  # (N, 8)
    b_other = tl.load(p_density + b_j, mask=b_j >= 0, other=0.0)  # (N, 8)
    m_j = (b_j >= 0) & precedes(b_other, b_j, b_rho[:, None], o_n[:, None])
    b_first = tl.min(tl.where(m_j, o_k, FAR_INDEX), axis=1)
    return tl.max(tl.where(o_k == b_first[:, None], b_j, -1), axis=1)


@triton.jit
def listed_parents(p_knn, p_density, b_rho, o_n, m_ok, K):
    """Return the first neighbour of each token that precedes it, -1 for local peaks.

    The list is sorted by distance and contains the nearest tokens, so the first neighbour that
    precedes is the nearest of all tokens that do.
    """
    # The first turn is outside the loop: Triton 3.7.1 miscompiles a loop-carried vector that starts
    # as a constant in the layout of a reduction.
    b_parent = first_preceding(p_knn, p_density, b_rho, o_n, m_ok, 0, K)
    for i_k in range(8, K, 8):
        b_found = first_preceding(p_knn, p_density, b_rho, o_n, m_ok, i_k, K)
        b_parent = tl.where(b_parent < 0, b_found, b_parent)
    return b_parent


@triton.jit(do_not_specialize=COUNTERS)
def listed_parents_fwd_kernel(
    images,
    p_knn,  # (T, K) int64
    p_density,  # (T,) float32
    p_parent,  # (T,) int64
    peaks,  # Rows, initially none
    p_best,  # (T,) int64; NO_KEY is written for peaks
    K,
    L,
    BLOCK_N: tl.constexpr,
):
    """Write the parents that are neighbours, -1 for others, and list the peaks."""
    i_b, i_n, start, n = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_N))
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_ok = flagged(images.p_ok, start, o_n, o_n < n)
    b_rho = tl.load(p_density + start + o_n, mask=m_ok, other=0.0)  # (N,)
    b_parent = listed_parents(p_knn + start * K, p_density + start, b_rho, o_n, m_ok, K)
    tl.store(p_parent + start + o_n, b_parent.to(tl.int64), mask=o_n < n)
    m_peak = m_ok & (b_parent < 0)
    append(peaks, i_b, start, o_n, m_peak)
    tl.store(p_best + start + o_n, tl.full((BLOCK_N,), NO_KEY, tl.int64), mask=m_peak)


@triton.jit(do_not_specialize=COUNTERS)
def peak_parents_fwd_kernel(
    x,
    images,  # with norms
    p_density,  # (T,) float32
    peaks,  # Rows
    p_best,  # (T,) int64
    L,
    width,  # programs of an image
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TURN: tl.constexpr,
):
    """Lower the key (distance, token) of each peak to that of its nearest preceding token."""
    at = locate(images.p_offsets, L, width)
    i_b, i_program, start, n = at
    count = tl.load(peaks.p_count + i_b)
    factor = tl.load(images.p_factor + i_b)
    turns = tl.cdiv(n, TURN * BLOCK_N)
    for i_turn in range(i_program, tl.cdiv(count, BLOCK_M) * turns, width):
        o_p = i_turn // turns * BLOCK_M + tl.arange(0, BLOCK_M)
        m_p = o_p < count
        o_m = tl.load(peaks.p_tokens + start + o_p, mask=m_p, other=FAR_INDEX)  # (M,)
        b_own = tl.load(p_density + start + o_m, mask=m_p, other=0.0)  # (M,)
        b_norm = load_norms(images, start, o_m, n)  # (M,)
        p_rows = x.p_x + (start + o_m) * x.stride_n
        b_best = tl.full((BLOCK_M,), float("inf"), dtype=tl.float32)
        b_token = tl.full((BLOCK_M,), 0, dtype=tl.int32)
        begin = i_turn % turns * (TURN * BLOCK_N)
        for i_n in range(begin, tl.minimum(begin + TURN * BLOCK_N, n), BLOCK_N):
            o_n = i_n + tl.arange(0, BLOCK_N)
            p_columns = x.p_x + (start + o_n) * x.stride_n
            b_dot = products(
                *(p_rows, p_columns, m_p, o_n < n, factor, x.D, x.stride_d, PRECISION, BLOCK_D)
            )
            # No token precedes itself, so its distance need not be exactly 0.
            b_d = distances_of(b_dot, b_norm, load_norms(images, start, o_n, n))  # (M, N)
            # (N,) -1 precedes no token
            b_other = tl.load(p_density + start + o_n, mask=o_n < n, other=-1.0)
            m_precedes = precedes(b_other[None, :], o_n[None, :], b_own[:, None], o_m[:, None])
            b_d = tl.where(m_precedes, b_d, float("inf"))
            b_min = tl.min(b_d, axis=1)
            b_first = tl.min(tl.where(b_d == b_min[:, None], o_n[None, :], FAR_INDEX), axis=1)
            # Columns ascend, so a later equal distance has a higher index.
            b_token = tl.where(b_min < b_best, b_first, b_token)
            b_best = tl.minimum(b_best, b_min)
        # Bits of non-negative floats order like the floats, and a minimum is order-independent.
        b_key = (b_best.to(tl.int32, bitcast=True).to(tl.int64) << 32) | b_token
        m_found = m_p & (b_best < float("inf"))
        tl.atomic_min(p_best + start + o_m, b_key, mask=m_found, sem="relaxed")


@triton.jit(do_not_specialize=COUNTERS)
def settle_parents_fwd_kernel(
    images,
    p_parent,  # (T,) int64
    p_best,  # (T,) int64 keys of the peaks, or None in a replay
    tops,  # Rows, initially none, or None: tokens without parent
    p_key,  # (T,) int64 with tops; -1 is written for them
    L,
    BLOCK_N: tl.constexpr,
):
    """Write the parents of the peaks, and list the tokens without parent."""
    i_b, i_n, start, n = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_N))
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_ok = flagged(images.p_ok, start, o_n, o_n < n)
    b_parent = tl.load(p_parent + start + o_n, mask=m_ok, other=-1)  # (N,)
    if p_best is not None:
        m_peak = m_ok & (b_parent < 0)
        b_best = tl.load(p_best + start + o_n, mask=m_peak, other=NO_KEY)  # (N,)
        m_found = m_peak & (b_best != NO_KEY)
        b_parent = tl.where(m_found, b_best & FAR_INDEX, b_parent)
        tl.store(p_parent + start + o_n, b_parent, mask=m_found)
    if tops is not None:
        m_top = m_ok & (b_parent < 0)
        append(tops, i_b, start, o_n, m_top)
        tl.store(p_key + start + o_n, tl.full((BLOCK_N,), -1, tl.int64), mask=m_top)


def find_parents(
    x: Tensor,
    norm: Tensor,
    chunk: Chunk,
    knn: Tensor,
    density: Tensor,
    parent: Tensor,
    peaks: Rows,
) -> Tensor:
    """Write the parents that are neighbours into `parent` (T,), and search those of the peaks.

    Args:
        x: (T, D) tokens of all images.
        norm: (T,) squared norms of the tokens in range.
        chunk: all images.
        knn: (T, K) int64 nearest tokens, ascending.
        density: (T,) float32 local densities.
        parent: output, (T,) int64, -1 for peaks.
        peaks: output, initially empty: tokens that precede all of their neighbours.

    Returns:
        (T,) int64 keys of the peaks for `settle_parents`.
    """
    k, longest, images = knn.shape[1], chunk.longest, Images.of(chunk, norm)
    best, block = torch.empty_like(parent), 128
    listed_parents_fwd_kernel[(chunk.images * triton.cdiv(longest, block),)](
        *(images, knn, density, parent, peaks, best, k, longest), BLOCK_N=block, num_warps=4
    )
    config = gram_config(x.dtype)
    # One program for each multiprocessor of the largest GPUs, as long as there are tokens.
    width = max(1, min(132 // chunk.images, triton.cdiv(longest, config.block_n)))
    peak_parents_fwd_kernel[(chunk.images * width,)](
        *(Tokens.of(x), images, density, peaks, best, longest, width),
        PRECISION=dot_precision(x.dtype),
        TURN=TURN,
        **config.launch(),
    )
    return best


def settle_parents(
    chunk: Chunk,
    parent: Tensor,
    best: Tensor | None,
    tops: Rows | None = None,
    key: Tensor | None = None,
) -> None:
    """Write the parents of the peaks into `parent` (T,), and list the tokens without parent.

    Args:
        chunk: all images.
        parent: (T,) int64 parents.
        best: keys of `find_parents`; None in a replay, whose parents are inputs.
        tops: output or None, initially empty: tokens without parent.
        key: output with `tops`, (T,) int64: -1 for tokens without parent.
    """
    block = 128
    settle_parents_fwd_kernel[(chunk.images * triton.cdiv(chunk.longest, block),)](
        *(Images.of(chunk), parent, best, tops, key, chunk.longest), BLOCK_N=block, num_warps=4
    )
