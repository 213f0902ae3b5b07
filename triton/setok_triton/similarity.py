"""Kernels of the cosine similarity of tokens of any magnitude."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.common import COUNTERS, Tokens, dot_tile, flagged, locate
from setok_triton.configs import token_config
from setok_triton.features import usable

# Tokens whose maximum has an exponent within +-KEPT_EXPONENT need no scaling: terms that underflow
# are far below the rounding of the sum.
KEPT_EXPONENT = tl.constexpr(40)


class Directions(NamedTuple):
    """Factors that turn inner products into cosines."""

    p_ok: Tensor  # (T,) int8, 0 for excluded tokens
    p_power: Tensor  # (T,) float32 power of two that scales the token into range
    p_inverse: Tensor  # (T,) float32 1 / norm of the token in range, 0 for a zero vector
    p_scaled: Tensor  # (B,) int32, 0 if all powers of the image are 1


@triton.jit(do_not_specialize=COUNTERS)
def directions_fwd_kernel(
    x,
    p_valid,  # (T,) uint8 or None
    p_offsets,
    out,  # Directions; p_scaled is initially 0
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the `Directions` of BLOCK_N tokens."""
    i_b, i_n, start, n = locate(p_offsets, L, tl.cdiv(L, BLOCK_N))
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    p_rows = x.p_x + ((start + o_n) * x.stride_n)[:, None]
    m_ok, b_largest = usable(x, p_valid, start, o_n, m_n, BLOCK_D)
    b_bits = b_largest.to(tl.int32, bitcast=True)
    b_exponent = tl.minimum(tl.maximum((b_bits >> 23) - 127, -126), 126)
    m_keep = (b_bits == 0) | ((b_exponent >= -KEPT_EXPONENT) & (b_exponent <= KEPT_EXPONENT))
    b_exponent = tl.where(m_keep, 0, b_exponent)
    b_power = ((127 - b_exponent) << 23).to(tl.float32, bitcast=True)
    b_squares = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for i_d in range(0, x.D, BLOCK_D):
        m_x = m_ok[:, None] & (i_d + o_d < x.D)[None, :]
        b_x = tl.load(p_rows + ((i_d + o_d) * x.stride_d)[None, :], mask=m_x, other=0.0)  # (N, D)
        b_x = b_x.to(tl.float32) * b_power[:, None]
        b_squares += b_x * b_x
    b_sum = tl.sum(b_squares, axis=1)
    b_norm = tl.sqrt_rn(tl.where(b_sum > 0, b_sum, 1.0))
    b_inverse = tl.where(b_sum > 0, tl.div_rn(1.0, b_norm), 0.0)
    tl.store(out.p_ok + start + o_n, m_ok.to(tl.int8), mask=m_n)
    tl.store(out.p_power + start + o_n, b_power, mask=m_n)
    tl.store(out.p_inverse + start + o_n, b_inverse, mask=m_n)
    tl.atomic_max(out.p_scaled + i_b, tl.max((b_exponent != 0).to(tl.int32), axis=0))


@triton.jit
def similarity_tile(x, directions, at, o_m, o_n, PRECISION, BLOCK_D):
    """Return (M, N) cosines of tokens, at most 1, minus infinity if either is excluded."""
    m_m, m_n = o_m < at.n, o_n < at.n
    p_rows = x.p_x + (at.start + o_m) * x.stride_n
    p_columns = x.p_x + (at.start + o_n) * x.stride_n
    if tl.load(directions.p_scaled + at.i_b) != 0:
        # (M, 1) and (1, N)
        b_power_m = tl.load(directions.p_power + at.start + o_m, mask=m_m, other=1.0)[:, None]
        b_power_n = tl.load(directions.p_power + at.start + o_n, mask=m_n, other=1.0)[None, :]
        b_dot = dot_tile(
            p_rows,
            p_columns,
            m_m,
            m_n,
            b_power_m,
            b_power_n,
            x.D,
            x.stride_d,
            PRECISION,
            BLOCK_D,
        )
    else:
        b_dot = dot_tile(
            p_rows, p_columns, m_m, m_n, None, None, x.D, x.stride_d, PRECISION, BLOCK_D
        )
    b_inverse_m = tl.load(directions.p_inverse + at.start + o_m, mask=m_m, other=0.0)  # (M,)
    b_inverse_n = tl.load(directions.p_inverse + at.start + o_n, mask=m_n, other=0.0)  # (N,)
    m_m = flagged(directions.p_ok, at.start, o_m, m_m)
    m_n = flagged(directions.p_ok, at.start, o_n, m_n)
    # This order of the factors makes the similarity symmetric.
    b_cosine = tl.minimum(b_dot * (b_inverse_m[:, None] * b_inverse_n[None, :]), 1.0)
    return tl.where(m_m[:, None] & m_n[None, :], b_cosine, -float("inf"))


def directions(x: Tensor, valid: Tensor | None, offsets: Tensor, longest: int) -> Directions:
    """Return the `Directions` of all tokens.

    Args:
        x: (T, D) tokens of all images.
        valid: (T,) uint8 flags or None.
        offsets: (B + 1,) int64 offsets of the images.
        longest: maximum number of tokens of an image.
    """
    images, config = offsets.shape[0] - 1, token_config(x.dtype)
    ok = x.new_empty(x.shape[0], dtype=torch.int8)
    inverse, power = (x.new_empty(x.shape[0], dtype=torch.float32) for _ in range(2))
    out = Directions(ok, power, inverse, x.new_zeros(images, dtype=torch.int32))
    blocks = triton.cdiv(longest, config.block_n)
    directions_fwd_kernel[(images * blocks,)](
        *(Tokens.of(x), valid, offsets, out, longest), **config.launch()
    )
    return out
