"""Kernels of the token order, the seed distance (SeTok, Eq. 2) and the seed score."""

import triton
import triton.language as tl
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.common import (
    COUNTERS,
    FAR_INDEX,
    Images,
    Tokens,
    distance_tile,
    farthest,
    flagged,
    locate,
    pair_distance,
)
from setok_triton.configs import (
    dot_precision,
    max_registers,
    row_tile_config,
    tile_config,
    token_config,
)
from setok_triton.importance import weighted_score


@triton.jit(do_not_specialize=COUNTERS)
def parents_fwd_kernel(
    x,
    images,
    p_density,  # (T,) float32
    p_farthest,  # (T,) float32 squared distance to the farthest token; read with p_cap
    p_parent,  # (T,) int64
    p_cap,  # (T,) float32 minimum of p_farthest among tokens of no higher order, or None
    L,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the nearest token of higher density, or equal density and lower index; else -1."""
    at = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_M))
    i_b, i_m, start, n = at
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    factor = tl.load(images.p_factor + i_b)
    b_own = tl.load(p_density + start + o_m, mask=o_m < n, other=0.0)  # (M,)
    b_best = tl.full((BLOCK_M,), float("inf"), dtype=tl.float32)
    b_parent = tl.full((BLOCK_M,), -1, dtype=tl.int32)
    b_cap = tl.full((BLOCK_M,), float("inf"), dtype=tl.float32)
    if i_m * BLOCK_M < n:
        for i_n in range(0, n, BLOCK_N):
            o_n = i_n + tl.arange(0, BLOCK_N)
            b_d = distance_tile(x, images, at, o_m, o_n, factor, L, PRECISION, BLOCK_D)  # (M, N)
            # (N,) -1 precedes no token
            b_other = tl.load(p_density + start + o_n, mask=o_n < n, other=-1.0)
            m_higher = b_other[None, :] > b_own[:, None]
            m_tied = (b_other[None, :] == b_own[:, None]) & (o_n[None, :] < o_m[:, None])
            m_precedes = m_higher | m_tied
            if p_cap is not None:
                b_far = tl.load(p_farthest + start + o_n, mask=o_n < n, other=0.0)  # (N,)
                m_pair = (b_d < float("inf")) & ~m_precedes
                b_far = tl.where(m_pair, b_far[None, :], float("inf"))
                b_cap = tl.minimum(b_cap, tl.min(b_far, axis=1))
            b_d = tl.where(m_precedes, b_d, float("inf"))
            b_min = tl.min(b_d, axis=1)
            m_min = b_d == b_min[:, None]
            b_first = tl.min(tl.where(m_min, o_n[None, :], FAR_INDEX), axis=1)
            # Columns ascend, so a later equal distance has a higher index.
            b_parent = tl.where(b_min < b_best, b_first, b_parent)
            b_best = tl.minimum(b_best, b_min)
    tl.store(p_parent + start + o_m, b_parent.to(tl.int64), mask=o_m < n)
    if p_cap is not None:
        tl.store(p_cap + start + o_m, b_cap, mask=o_m < n)


@triton.jit(do_not_specialize=COUNTERS)
def delta_fwd_kernel(
    x,
    images,
    p_parent,  # (T,) int64
    p_delta,  # (T,) float32
    p_target,  # (T,) int32 token of delta: the parent, without one the farthest token; or None
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write delta = d(i, parent); for a token without parent the maximum of its row."""
    at = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_N))
    i_b, i_n, start, n = at
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    factor, sigma = tl.load(images.p_factor + i_b), tl.load(images.p_sigma + i_b)
    b_parent = tl.load(p_parent + start + o_n, mask=m_n, other=0)  # (N,)
    m_ok = flagged(images.p_ok, start, o_n, m_n)
    m_pair = m_ok & (b_parent >= 0)
    b_other = tl.where(m_pair, b_parent, 0)
    b_delta = pair_distance(x, images, at, o_n, b_other, m_pair, factor, L, BLOCK_D)
    # Most blocks have no top token, and an image has one; a replay may have more.
    m_top = m_ok & (b_parent < 0)
    top = tl.max(tl.where(m_top, o_n, -1), axis=0)
    while top >= 0:
        largest, far = farthest(x, images, at, top, factor, L, BLOCK_N, BLOCK_D)
        b_delta = tl.where(o_n == top, largest, b_delta)
        b_parent = tl.where(o_n == top, far.to(tl.int64), b_parent)
        m_top = m_top & (o_n != top)
        top = tl.max(tl.where(m_top, o_n, -1), axis=0)
    # An infinite delta at density 0 would make the score NaN.
    b_delta = tl.minimum(sigma * b_delta, 3.4028234663852886e38)
    tl.store(p_delta + start + o_n, tl.where(m_ok, b_delta, 0.0), mask=m_n)
    if p_target is not None:
        tl.store(p_target + start + o_n, tl.where(m_ok, b_parent, -1).to(tl.int32), mask=m_n)


@triton.jit(do_not_specialize=COUNTERS)
def score_fwd_kernel(
    p_offsets,
    p_density,  # (T,) float32
    p_delta,  # (T,) float32
    p_importance,  # (T,) weights, or None
    p_seeds,  # (B, C) int64 of a replay, or None
    p_score,  # (T,) float32
    L,
    stride_seeds,
    NORMALISE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write s = (rho * delta) * w, divided by the image's maximum.

    A replay has the token of the maximum in `p_seeds`.
    """
    i_b, _, start, n = locate(p_offsets, L, 1)
    o_n = tl.arange(0, BLOCK_N)
    largest = 1.0
    if NORMALISE:
        b_largest = tl.zeros((BLOCK_N,), dtype=tl.float32)
        for i_n in range(0, n, BLOCK_N):
            m_n = i_n + o_n < n
            b_rho = tl.load(p_density + start + i_n + o_n, mask=m_n, other=0.0)  # (N,)
            b_delta = tl.load(p_delta + start + i_n + o_n, mask=m_n, other=0.0)  # (N,)
            b_raw = weighted_score(b_rho * b_delta, p_importance, start, i_n + o_n, m_n)
            b_largest = tl.maximum(b_largest, b_raw)
        largest = tl.max(b_largest, axis=0)
        if p_seeds is not None:
            top = tl.load(p_seeds + i_b * stride_seeds)
            m_top = top >= 0
            rho = tl.load(p_density + start + top, mask=m_top, other=0.0)
            delta = tl.load(p_delta + start + top, mask=m_top, other=0.0)
            raw = weighted_score(rho * delta, p_importance, start, top, m_top)
            largest = tl.where(m_top, raw, largest)
        # A subnormal maximum counts as 0: its reciprocal is not finite.
        largest = tl.where(largest >= 1.1754943508222875e-38, largest, 1.0)
    for i_n in range(0, n, BLOCK_N):
        m_n = i_n + o_n < n
        b_rho = tl.load(p_density + start + i_n + o_n, mask=m_n, other=0.0)  # (N,)
        b_delta = tl.load(p_delta + start + i_n + o_n, mask=m_n, other=0.0)  # (N,)
        b_raw = weighted_score(b_rho * b_delta, p_importance, start, i_n + o_n, m_n)
        tl.store(p_score + start + i_n + o_n, tl.div_rn(b_raw, largest), mask=m_n)


def parents(
    x: Tensor,
    norm: Tensor,
    chunk: Chunk,
    density: Tensor,
    parent: Tensor,
    farthest: Tensor | None = None,
    cap: Tensor | None = None,
) -> None:
    """Write the nearest tokens of higher order of the chunk into `parent` (T,) int64.

    If given, `cap` (T,) receives the minimum of `farthest` (T,) among the tokens of no higher
    order, the token itself included.
    """
    config = row_tile_config(8) if chunk.dense else tile_config(x.dtype)
    blocks = triton.cdiv(chunk.longest, config.block_m)
    parents_fwd_kernel[(chunk.images * blocks,)](
        *(Tokens.of(x), Images.of(chunk, norm), density, farthest, parent, cap, chunk.longest),
        PRECISION=dot_precision(x.dtype),
        **config.launch(),
    )


def delta(
    x: Tensor, chunk: Chunk, parent: Tensor, out: Tensor, target: Tensor | None = None
) -> None:
    """Write the distances to given parents into `out` (T,).

    If given, `target` (T,) int32 receives the tokens of these distances.
    """
    config = token_config(x.dtype)
    blocks = triton.cdiv(chunk.longest, config.block_n)
    delta_fwd_kernel[(chunk.images * blocks,)](
        *(Tokens.of(x), Images.of(chunk), parent, out, target, chunk.longest),
        **config.launch(),
        maxnreg=max_registers(x),
    )


def score(
    chunk: Chunk,
    density: Tensor,
    delta: Tensor,
    importance: Tensor | None,
    seeds: Tensor | None,
    out: Tensor,
    norm: bool,
) -> None:
    """Write the seed score of the chunk into `out` (T,); a replay passes its `seeds` (B, C)."""
    score_fwd_kernel[(chunk.images,)](
        *(chunk.offsets, density, delta, importance, seeds, out, chunk.longest),
        0 if seeds is None else seeds.stride(0),
        NORMALISE=norm,
        BLOCK_N=1024,
    )
