"""Kernels of the token order, the seed distance (SeTok, Eq. 2) and the seed score."""

import torch
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
from setok_triton.parents import precedes
from setok_triton.rows import Rows


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
            m_precedes = precedes(b_other[None, :], o_n[None, :], b_own[:, None], o_m[:, None])
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
def farthest_fwd_kernel(
    x,
    images,
    tops,  # Rows: tokens without parent
    p_key,  # (T,) int64, initially -1
    p_highest,  # (B,) int32; 0 is written
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Raise the key (distance, token) of each top token to that of the farthest of BLOCK_N tokens.

    Of equal distances the lowest token has the largest key, see `farthest_of`.
    """
    at = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_N))
    i_b, i_n, start, n = at
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_ok = flagged(images.p_ok, start, o_n, o_n < n)
    factor = tl.load(images.p_factor + i_b)
    if i_n == 0:
        tl.store(p_highest + i_b, 0)
    # An image has one top token; a replay may have more.
    for i_top in range(tl.load(tops.p_count + i_b)):
        top = tl.load(tops.p_tokens + start + i_top)
        b_top = tl.zeros((1,), dtype=tl.int32) + top
        b_d = pair_distance(x, images, at, b_top, o_n, m_ok, factor, L, BLOCK_D)
        # Bits of non-negative floats order like the floats, and a maximum is order-independent.
        b_key = (b_d.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (FAR_INDEX - o_n)
        key = tl.max(tl.where(m_ok, b_key, -1), axis=0)
        tl.atomic_max(p_key + start + top, key, sem="relaxed")


@triton.jit
def farthest_of(b_key):
    """Return the squared distances and the tokens in keys of `farthest_fwd_kernel`."""
    b_d = (b_key >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return b_d, FAR_INDEX - (b_key & FAR_INDEX).to(tl.int32)


@triton.jit(do_not_specialize=COUNTERS)
def delta_fwd_kernel(
    x,
    images,
    p_parent,  # (T,) int64
    p_key,  # (T,) int64 keys of the farthest tokens, read for tokens without parent
    p_density,  # (T,) float32
    p_importance,  # (T,) weights, or None
    p_delta,  # (T,) float32
    p_highest,  # (B,) int32 bits of the maximum rho * delta * w, initially 0
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
    m_top = m_ok & (b_parent < 0)
    b_far, b_token = farthest_of(tl.load(p_key + start + o_n, mask=m_top, other=0))
    b_delta = tl.where(m_top, b_far, b_delta)
    # An infinite delta at density 0 would make the score NaN.
    b_delta = tl.minimum(sigma * b_delta, 3.4028234663852886e38)
    b_delta = tl.where(m_ok, b_delta, 0.0)
    tl.store(p_delta + start + o_n, b_delta, mask=m_n)
    if p_target is not None:
        b_target = tl.where(m_top, b_token, tl.where(m_ok, b_parent, -1).to(tl.int32))
        tl.store(p_target + start + o_n, b_target, mask=m_n)
    b_rho = tl.load(p_density + start + o_n, mask=m_ok, other=0.0)  # (N,)
    b_raw = weighted_score(b_rho * b_delta, p_importance, start, o_n, m_n)
    highest = tl.max(tl.where(m_ok, b_raw, 0.0), axis=0)
    tl.atomic_max(p_highest + i_b, highest.to(tl.int32, bitcast=True), sem="relaxed")


@triton.jit(do_not_specialize=COUNTERS)
def score_fwd_kernel(
    p_offsets,
    p_density,  # (T,) float32
    p_delta,  # (T,) float32
    p_importance,  # (T,) weights, or None
    p_seeds,  # (B, C) int64 of a replay, or None
    p_highest,  # (B,) int32 bits of the maximum rho * delta * w
    p_score,  # (T,) float32
    L,
    stride_seeds,
    NORMALISE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write s = (rho * delta) * w, divided by the image's maximum.

    A replay has the token of the maximum in `p_seeds`.
    """
    i_b, i_n, start, n = locate(p_offsets, L, tl.cdiv(L, BLOCK_N))
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n, largest = o_n < n, 1.0
    if NORMALISE:
        largest = tl.load(p_highest + i_b).to(tl.float32, bitcast=True)
        if p_seeds is not None:
            top = tl.load(p_seeds + i_b * stride_seeds)
            m_top = top >= 0
            rho = tl.load(p_density + start + top, mask=m_top, other=0.0)
            delta = tl.load(p_delta + start + top, mask=m_top, other=0.0)
            raw = weighted_score(rho * delta, p_importance, start, top, m_top)
            largest = tl.where(m_top, raw, largest)
        # A subnormal maximum counts as 0: its reciprocal is not finite.
        largest = tl.where(largest >= 1.1754943508222875e-38, largest, 1.0)
    b_rho = tl.load(p_density + start + o_n, mask=m_n, other=0.0)  # (N,)
    b_delta = tl.load(p_delta + start + o_n, mask=m_n, other=0.0)  # (N,)
    b_raw = weighted_score(b_rho * b_delta, p_importance, start, o_n, m_n)
    tl.store(p_score + start + o_n, tl.div_rn(b_raw, largest), mask=m_n)


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
    x: Tensor,
    chunk: Chunk,
    parent: Tensor,
    farthest: tuple[Rows, Tensor, Tensor | None],
    density: Tensor,
    importance: Tensor | None,
    out: Tensor,
) -> Tensor:
    """Write the distances to the parents, or to the farthest tokens of those without parent.

    Args:
        x: (T, D) tokens of all images.
        chunk: all images.
        parent: (T,) int64 parents.
        farthest: tokens without parent; (T,) int64 buffer, -1 for them, for the keys of
            `farthest_fwd_kernel`; output or None, (T,) int32 token of each distance.
        density: (T,) float32 local densities.
        importance: (T,) weights of the scores or None.
        out: output, (T,) float32 seed distances.

    Returns:
        (B,) int32 bits of the maximum score of each image before its normalisation.
    """
    tops, key, target = farthest
    config, highest = token_config(x.dtype), torch.empty_like(tops.p_count)
    programs = (chunk.images * triton.cdiv(chunk.longest, config.block_n),)
    tokens, images = Tokens.of(x), Images.of(chunk)
    launch = config.launch() | {"maxnreg": max_registers(x)}
    farthest_fwd_kernel[programs](tokens, images, tops, key, highest, chunk.longest, **launch)
    delta_fwd_kernel[programs](
        *(tokens, images, parent, key, density, importance, out, highest, target, chunk.longest),
        **launch,
    )
    return highest


def score(
    chunk: Chunk,
    density: Tensor,
    delta: Tensor,
    importance: Tensor | None,
    seeds: Tensor | None,
    highest: Tensor,
    out: Tensor,
    norm: bool,
) -> None:
    """Write the seed score of the chunk into `out` (T,); a replay passes its `seeds` (B, C)."""
    block = 256
    score_fwd_kernel[(chunk.images * triton.cdiv(chunk.longest, block),)](
        *(chunk.offsets, density, delta, importance, seeds, highest, out, chunk.longest),
        0 if seeds is None else seeds.stride(0),
        NORMALISE=norm,
        BLOCK_N=block,
    )
