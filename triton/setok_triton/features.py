"""Kernels of statistics of the features: finite tokens, their range, scale and norms."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.common import COUNTERS, FAR_INDEX, Tokens, flagged, locate, products
from setok_triton.configs import dot_precision, tile_config, token_config


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
    p_largest,  # (B,) int32 bits of the maximum magnitude, initially 0
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the `ok` flag of each token, and the maximum magnitude of each image."""
    i_b, i_n, start, n = locate(p_offsets, L, tl.cdiv(L, BLOCK_N))
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_ok, b_largest = usable(x, p_valid, start, o_n, m_n, BLOCK_D)
    tl.store(p_ok + start + o_n, m_ok.to(tl.int8), mask=m_n)
    largest = tl.max(b_largest, axis=0)
    # Bits of non-negative floats order like the floats, and a maximum is order-independent.
    tl.atomic_max(p_largest + i_b, largest.to(tl.int32, bitcast=True))


@triton.jit(do_not_specialize=COUNTERS)
def variance_fwd_kernel(
    x,
    p_ok,
    p_offsets,
    p_sums,  # (B, blocks of features, 2) float64
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write sum_i ||y_i||^2 and ||sum_i y_i||^2 of a block of features, y = x - first token.

    All-equal tokens give exactly 0, and float64 sums of small integers do not depend on the order.
    """
    _, i_d, start, n = locate(p_offsets, L, tl.cdiv(x.D, BLOCK_D))
    o_n = tl.arange(0, BLOCK_N)
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    m_d = o_d < x.D
    first = FAR_INDEX
    for i_n in range(0, n, BLOCK_N):
        m_ok = tl.load(p_ok + start + i_n + o_n, mask=i_n + o_n < n, other=0) != 0
        first = tl.minimum(first, tl.min(tl.where(m_ok, i_n + o_n, FAR_INDEX), axis=0))
    m_any = first < n
    p_first = x.p_x + (start + first) * x.stride_n + o_d * x.stride_d
    b_origin = tl.load(p_first, mask=m_d & m_any, other=0.0).to(tl.float64)  # (D,)
    b_total = tl.zeros((BLOCK_D,), dtype=tl.float64)
    b_square = tl.zeros((BLOCK_D,), dtype=tl.float64)
    for i_n in range(0, n, BLOCK_N):
        m_ok = tl.load(p_ok + start + i_n + o_n, mask=i_n + o_n < n, other=0) != 0
        p_rows = x.p_x + ((start + i_n + o_n) * x.stride_n)[:, None]
        p_block = p_rows + (o_d * x.stride_d)[None, :]
        m_x = m_ok[:, None] & m_d[None, :]
        # (N, D)
        b_x = tl.load(p_block, mask=m_x, other=0.0).to(tl.float64) - b_origin[None, :]
        b_x = tl.where(m_x, b_x, 0.0)
        b_total += tl.sum(b_x, axis=0)
        b_square += tl.sum(b_x * b_x, axis=0)
    p_out = p_sums + tl.program_id(0).to(tl.int64) * 2
    tl.store(p_out, tl.sum(b_square, axis=0))
    tl.store(p_out + 1, tl.sum(b_total * b_total, axis=0))


@triton.jit(do_not_specialize=COUNTERS)
def scale_fwd_kernel(
    p_ok,
    p_offsets,
    p_largest,
    p_sums,
    p_factor,  # (B,) float32 power of two that scales the tokens into range; 0: all are equal
    p_sigma,  # (B,) float32 scale of the distances of the tokens in range
    p_num_ok,  # (B,) int32
    sigma,  # fixed scale, without VARIANCE
    L,
    parts,
    VARIANCE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write range and scale of each image."""
    i_b, _, start, n = locate(p_offsets, L, 1)
    o_n = tl.arange(0, BLOCK_N)
    b_count = tl.zeros((BLOCK_N,), dtype=tl.int32)
    for i_n in range(0, n, BLOCK_N):
        # (N,)
        b_count += tl.load(p_ok + start + i_n + o_n, mask=i_n + o_n < n, other=0).to(tl.int32)
    count = tl.sum(b_count, axis=0)
    tl.store(p_num_ok + i_b, count)

    # Scaling by a power of two is only needed if a square may leave the range of float32, which is
    # impossible for magnitudes from 2**-4 to 2**20.
    bits = tl.load(p_largest + i_b)
    exponent = (bits >> 23) - 126
    exponent = tl.minimum(tl.maximum(exponent, -126), 126)
    keep = (bits == 0) | ((exponent >= -3) & (exponent <= 20))
    exponent = tl.where(keep, 0, exponent)
    factor = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    undo = ((exponent + 127).to(tl.int32) << 23).to(tl.float32, bitcast=True).to(tl.float64)
    if VARIANCE:
        squares = tl.zeros((), dtype=tl.float64)
        total = tl.zeros((), dtype=tl.float64)
        for i in range(parts):
            p_part = p_sums + (i_b * parts + i) * 2
            squares += tl.load(p_part)
            total += tl.load(p_part + 1)
        c = count.to(tl.float64)
        variance = c * squares - total
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
    p_offsets,
    p_factor,
    p_norm,  # (T,) float32
    L,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write squared norms, as the diagonal of the product that also gives the distances."""
    i_b, i_m, start, n = locate(p_offsets, L, tl.cdiv(L, BLOCK_M))
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < n
    p_rows = x.p_x + (start + o_m) * x.stride_n
    factor = tl.load(p_factor + i_b)
    b_dot = products(p_rows, p_rows, m_m, m_m, factor, x.D, x.stride_d, PRECISION, BLOCK_D)
    m_diagonal = o_m[:, None] == o_m[None, :]
    tl.store(p_norm + start + o_m, tl.sum(tl.where(m_diagonal, b_dot, 0.0), axis=1), mask=m_m)


def token_states(
    x: Tensor, valid: Tensor | None, offsets: Tensor, longest: int, ok: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (T,) int8 flags of valid finite tokens, and (B,) int32 bits of each maximum.

    Args:
        x: (T, D) tokens of all images.
        valid: (T,) uint8 flags or None.
        offsets: (B + 1,) int64 offsets of the images.
        longest: maximum number of tokens of an image.
        ok: buffer of the flags, which may be longer; None for a new one.
    """
    images, config = offsets.shape[0] - 1, token_config(x.dtype)
    ok = x.new_zeros(x.shape[0], dtype=torch.int8) if ok is None else ok.zero_()
    largest = x.new_zeros(images, dtype=torch.int32)
    blocks = triton.cdiv(longest, config.block_n)
    if images * blocks:
        token_state_fwd_kernel[(images * blocks,)](
            *(Tokens.of(x), valid, offsets, ok, largest, longest),
            **config.launch(),
        )
    return ok, largest


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
    ok, largest = token_states(x, valid, offsets, longest, None if out is None else out[0])
    parts = triton.cdiv(dim, config.block_d)
    sums = x.new_empty(images, parts, 2, dtype=torch.float64)
    if out is None:
        out = ok, *(x.new_empty(images, dtype=torch.float32) for _ in range(2))
    _, factor, scale = out
    num_ok = x.new_empty(images, dtype=torch.int32)
    if images and sigma is None:
        variance_fwd_kernel[(images * parts,)](
            *(Tokens.of(x), ok, offsets, sums, longest),
            **config.launch(),
        )
    if images:
        scale_fwd_kernel[(images,)](
            ok,
            offsets,
            largest,
            sums,
            factor,
            scale,
            num_ok,
            0.0 if sigma is None else sigma,
            longest,
            parts,
            VARIANCE=sigma is None,
            BLOCK_N=1024,
        )
    return ok, factor, scale, num_ok


def norms(
    x: Tensor, offsets: Tensor, longest: int, factor: Tensor, out: Tensor | None = None
) -> Tensor:
    """Return the squared norms (T,) of the tokens in range, in `out` if given.

    The other arguments are as in `scales`.
    """
    config = tile_config(x.dtype)
    out = x.new_empty(x.shape[0], dtype=torch.float32) if out is None else out
    blocks = triton.cdiv(longest, config.block_m)
    images = offsets.shape[0] - 1
    if images * blocks:
        norms_fwd_kernel[(images * blocks,)](
            *(Tokens.of(x), offsets, factor, out, longest),
            PRECISION=dot_precision(x.dtype),
            BLOCK_M=config.block_m,
            BLOCK_D=config.block_d,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return out
