"""Kernels of statistics of the features: finite tokens, their range, scale and norms."""

import dataclasses
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.common import COUNTERS, FAR_INDEX, Tokens, flagged, locate, products
from setok_triton.configs import dot_precision, tile_config, token_config

# Parts of an image whose features are summed by different programs.
CHUNKS = 64


@triton.jit
def usable(x, p_valid, start, o_n, m_n, BLOCK_D):
    """Return the mask of valid and finite tokens, and their maximum magnitudes, 0 for others."""
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    p_rows = x.p_x + ((start + o_n) * x.stride_n)[:, None]
    b_largest = tl.zeros((o_n.shape[0], BLOCK_D), dtype=tl.float32)
    b_finite = tl.full((o_n.shape[0], BLOCK_D), 1, dtype=tl.int32)
    for i_d in range(0, x.D, BLOCK_D):
        m_x = m_n[:, None] & (i_d + o_d < x.D)[None, :]
        b_x = tl.load(p_rows + ((i_d + o_d) * x.stride_d)[None, :], mask=m_x, other=0.0)  # (N, D)
        b_x = tl.abs(b_x.to(tl.float32))
        b_finite &= (b_x < float("inf")).to(tl.int32)
        b_largest = tl.maximum(b_largest, b_x)
    m_ok = flagged(p_valid, start, o_n, m_n) & (tl.min(b_finite, axis=1) != 0)
    return m_ok, tl.where(m_ok, tl.max(b_largest, axis=1), 0.0)


@triton.jit(do_not_specialize=COUNTERS)
def token_state_fwd_kernel(
    x,
    p_valid,  # (T,) uint8 or None
    p_offsets,
    p_ok,  # (T,) int8: valid and finite
    p_found,  # (B, 2) int32, initially 0: bits of their maximum magnitude, and their number
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the `ok` flag of each token; maximum magnitude and number of them of each image."""
    i_b, i_n, start, n = locate(p_offsets, L, tl.cdiv(L, BLOCK_N))
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_ok, b_largest = usable(x, p_valid, start, o_n, m_n, BLOCK_D)
    tl.store(p_ok + start + o_n, m_ok.to(tl.int8), mask=m_n)
    largest = tl.max(b_largest, axis=0)
    # Bits of non-negative floats order like the floats, and neither the maximum nor the number
    # depends on the order.
    tl.atomic_max(p_found + i_b * 2, largest.to(tl.int32, bitcast=True), sem="relaxed")
    tl.atomic_add(p_found + i_b * 2 + 1, tl.sum(m_ok.to(tl.int32), axis=0), sem="relaxed")


@triton.jit
def first_usable(p_ok, start, n, BLOCK_N):
    """Return the first token of an image that is not excluded, FAR_INDEX without one."""
    first, i_n = n * 0 + FAR_INDEX, 0
    while (first == FAR_INDEX) & (i_n < n):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_ok = tl.load(p_ok + start + o_n, mask=o_n < n, other=0) != 0
        first = tl.min(tl.where(m_ok, o_n, FAR_INDEX), axis=0)
        i_n += BLOCK_N
    return first


@triton.jit(do_not_specialize=COUNTERS)
def variance_fwd_kernel(
    x,
    p_ok,
    p_offsets,
    p_totals,  # (B, CHUNKS, D) float64
    p_squares,  # (B, CHUNKS, blocks of features) float64
    L,
    CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write sum_i y_i and sum_i ||y_i||^2 of a chunk of tokens and a block of features.

    y = x - first token: all-equal tokens give exactly 0, and float64 sums of small integers do not
    depend on the order.
    """
    parts = tl.cdiv(x.D, BLOCK_D)
    i_b, i_part, start, n = locate(p_offsets, L, CHUNKS * parts)
    i_chunk, i_d = i_part // parts, i_part % parts
    size = tl.cdiv(tl.cdiv(L, CHUNKS), BLOCK_N) * BLOCK_N
    o_n = tl.arange(0, BLOCK_N)
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    m_d = o_d < x.D
    b_total = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float64)
    b_square = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float64)
    if i_chunk * size < n:
        first = first_usable(p_ok, start, n, 1024)
        # A block of equal rows, which is loaded as wide as the others.
        p_first = x.p_x + (start + first) * x.stride_n + (o_n * 0)[:, None]
        m_first = m_d[None, :] & (first < n)
        b_origin = tl.load(p_first + (o_d * x.stride_d)[None, :], mask=m_first, other=0.0)  # (N, D)
        b_origin = b_origin.to(tl.float64)
        end = tl.minimum((i_chunk + 1) * size, n)
        for i_n in tl.range(i_chunk * size, end, BLOCK_N, loop_unroll_factor=4):
            m_n = i_n + o_n < end
            m_ok = tl.load(p_ok + start + i_n + o_n, mask=m_n, other=0) != 0
            p_rows = x.p_x + ((start + i_n + o_n) * x.stride_n)[:, None]
            p_block = p_rows + (o_d * x.stride_d)[None, :]
            # Excluded tokens are loaded too: waiting for their flags would delay the features.
            m_x = m_n[:, None] & m_d[None, :]
            # (N, D)
            b_x = tl.load(p_block, mask=m_x, other=0.0).to(tl.float64) - b_origin
            b_x = tl.where(m_ok[:, None] & m_d[None, :], b_x, 0.0)
            b_total += b_x
            b_square += b_x * b_x
    i_row = i_b * CHUNKS + i_chunk
    tl.store(p_totals + i_row * x.D + o_d, tl.sum(b_total, axis=0), mask=m_d)
    tl.store(p_squares + i_row * parts + i_d, tl.sum(tl.sum(b_square, axis=1), axis=0))


@triton.jit(do_not_specialize=COUNTERS)
def scale_fwd_kernel(
    p_found,  # (B, 2) int32, of `token_state_fwd_kernel`
    p_totals,  # with VARIANCE
    p_squares,  # with VARIANCE
    p_factor,  # (B,) float32 power of two that scales the tokens into range; 0: all are equal
    p_sigma,  # (B,) float32 scale of the distances of the tokens in range
    p_num_ok,  # (B,) int32
    sigma,  # fixed scale, without VARIANCE
    D,
    parts,
    VARIANCE: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write range and scale of each image."""
    i_b = tl.program_id(0).to(tl.int64)
    count = tl.load(p_found + i_b * 2 + 1)
    tl.store(p_num_ok + i_b, count)
    # Scaling by a power of two is only needed if a square may leave the range of float32, which is
    # impossible for magnitudes from 2**-4 to 2**20.
    bits = tl.load(p_found + i_b * 2)
    exponent = (bits >> 23) - 126
    exponent = tl.minimum(tl.maximum(exponent, -126), 126)
    keep = (bits == 0) | ((exponent >= -3) & (exponent <= 20))
    exponent = tl.where(keep, 0, exponent)
    factor = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    undo = ((exponent + 127).to(tl.int32) << 23).to(tl.float32, bitcast=True).to(tl.float64)
    if VARIANCE:
        o_c = tl.arange(0, CHUNKS)
        b_norm = tl.zeros((BLOCK_D,), dtype=tl.float64)
        for i_d in tl.range(0, D, BLOCK_D, loop_unroll_factor=2):
            o_d = i_d + tl.arange(0, BLOCK_D)
            p_total = p_totals + ((i_b * CHUNKS + o_c) * D)[:, None] + o_d[None, :]
            b_total = tl.sum(tl.load(p_total, mask=(o_d < D)[None, :], other=0.0), axis=0)  # (D,)
            b_norm += b_total * b_total
        b_squares = tl.zeros((CHUNKS,), dtype=tl.float64)
        for i in range(parts):
            b_squares += tl.load(p_squares + (i_b * CHUNKS + o_c) * parts + i)
        c = count.to(tl.float64)
        variance = c * tl.sum(b_squares, axis=0) - tl.sum(b_norm, axis=0)
        positive = variance > 0
        scale = tl.where(positive, 0.5 * c * c / tl.where(positive, variance, 1.0), 0.0)
        factor = tl.where(positive, factor, 0.0)
    else:
        scale = tl.zeros((), dtype=tl.float64) + sigma
    scale = tl.minimum(scale * undo * undo, 3.4028234663852886e38)
    tl.store(p_factor + i_b, factor)
    tl.store(p_sigma + i_b, scale.to(tl.float32))


@triton.jit(do_not_specialize=COUNTERS)
def norms_fwd_kernel(
    x,
    p_ok,
    p_offsets,
    p_factor,
    p_norm,  # (T,) float32
    L,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write squared norms, as the diagonal of the product that also gives the distances.

    Those of excluded tokens are infinite.
    """
    i_b, i_m, start, n = locate(p_offsets, L, tl.cdiv(L, BLOCK_M))
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < n
    p_rows = x.p_x + (start + o_m) * x.stride_n
    factor = tl.load(p_factor + i_b)
    b_dot = products(p_rows, p_rows, m_m, m_m, factor, x.D, x.stride_d, PRECISION, BLOCK_D)
    m_diagonal = o_m[:, None] == o_m[None, :]
    b_norm = tl.sum(tl.where(m_diagonal, b_dot, 0.0), axis=1)
    b_norm = tl.where(flagged(p_ok, start, o_m, m_m), b_norm, float("inf"))
    tl.store(p_norm + start + o_m, b_norm, mask=m_m)


def token_states(
    x: Tensor, valid: Tensor | None, offsets: Tensor, longest: int, ok: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (T,) int8 flags of valid finite tokens, and (B, 2) int32 maximum bits and counts.

    Args:
        x: (T, D) tokens of all images.
        valid: (T,) uint8 flags or None.
        offsets: (B + 1,) int64 offsets of the images.
        longest: maximum number of tokens of an image.
        ok: buffer of the flags, which may be longer; None for a new one.
    """
    images, config = offsets.shape[0] - 1, token_config(x.dtype)
    ok = x.new_zeros(x.shape[0], dtype=torch.int8) if ok is None else ok.zero_()
    found = x.new_zeros(images, 2, dtype=torch.int32)
    blocks = triton.cdiv(longest, config.block_n)
    if images * blocks:
        token_state_fwd_kernel[(images * blocks,)](
            *(Tokens.of(x), valid, offsets, ok, found, longest),
            **config.launch(),
        )
    return ok, found


def scales(
    x: Tensor,
    valid: Tensor | None,
    offsets: Tensor,
    longest: int,
    sigma: float | None,
    out: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the kernels of flags, range and scale.

    Args:
        x: (T, D) tokens of all images.
        valid: (T,) uint8 flags or None.
        offsets: (B + 1,) int64 offsets of the images.
        longest: maximum number of tokens of an image.
        sigma: fixed scale of the squared distances; None for the scale from the variance.
        out: buffers of ok, factor and sigma, which may be longer; None for new ones.

    Returns:
        ok (T,) int8, factor (B,), sigma (B,), num_ok (B,) int32.
    """
    dim, images, config = x.shape[1], offsets.shape[0] - 1, token_config(x.dtype)
    ok, found = token_states(x, valid, offsets, longest, None if out is None else out[0])
    config = dataclasses.replace(config, block_n=config.block_n // 2, block_d=config.block_d // 2)
    parts = triton.cdiv(dim, config.block_d)
    if out is None:
        out = ok, *(x.new_empty(images, dtype=torch.float32) for _ in range(2))
    _, factor, scale = out
    num_ok = x.new_empty(images, dtype=torch.int32)
    totals = squares = None
    if images and sigma is None:
        totals = x.new_empty(images, CHUNKS, dim, dtype=torch.float64)
        squares = x.new_empty(images, CHUNKS, parts, dtype=torch.float64)
        variance_fwd_kernel[(images * CHUNKS * parts,)](
            *(Tokens.of(x), ok, offsets, totals, squares, longest),
            CHUNKS=CHUNKS,
            **config.launch(),
        )
    if images:
        scale_fwd_kernel[(images,)](
            *(found, totals, squares, factor, scale, num_ok),
            *(0.0 if sigma is None else sigma, dim, parts),
            VARIANCE=sigma is None,
            CHUNKS=CHUNKS,
            BLOCK_D=64,
            num_warps=8,
        )
    return ok, factor, scale, num_ok


def norms(
    x: Tensor,
    ok: Tensor,
    offsets: Tensor,
    longest: int,
    factor: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """Return the squared norms (T,) of the tokens in range, in `out` if given.

    Those of excluded tokens are infinite. The other arguments are as in `scales`.
    """
    config = tile_config(x.dtype)
    out = x.new_empty(x.shape[0], dtype=torch.float32) if out is None else out
    blocks = triton.cdiv(longest, config.block_m)
    images = offsets.shape[0] - 1
    if images * blocks:
        norms_fwd_kernel[(images * blocks,)](
            *(Tokens.of(x), ok, offsets, factor, out, longest),
            PRECISION=dot_precision(x.dtype),
            BLOCK_M=config.block_m,
            BLOCK_D=config.block_d,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return out
