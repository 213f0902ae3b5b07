"""Cosine similarities of tokens of any magnitude."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.common import dot_tile, locate
from setok_triton.configs import token_config
from setok_triton.features import usable

# Exponents of the largest feature of a token, up or down, that need no scaling: what products of
# such tokens lose by leaving the range of float32 is far below the rounding of their sum.
KEPT_EXPONENT = tl.constexpr(40)


@triton.jit(do_not_specialize=["D", "L"])
def directions_fwd_kernel(
    p_x,
    p_valid,
    p_offsets,
    p_ok,  # (T,) int8: valid and finite
    p_power,  # (T,) float32 power of two that brings the token into range
    p_inverse,  # (T,) float32 1 / norm of the token in range, 0 of a zero vector
    p_scaled,  # (B,) int32, whether any power is not 1, 0 before
    D,
    L,
    blocks_per_image,
    stride_n,
    stride_d,
    HAS_VALID: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """What turns inner products into cosines, for BLOCK_N tokens."""
    i_b, i_n, start, n = locate(p_offsets, L, blocks_per_image)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    p_rows = p_x + ((start + o_n) * stride_n)[:, None]
    m_ok, b_largest = usable(
        p_x, p_valid, start, o_n, m_n, D, stride_n, stride_d, HAS_VALID, BLOCK_N, BLOCK_D
    )
    b_bits = b_largest.to(tl.int32, bitcast=True)
    b_exponent = tl.minimum(tl.maximum((b_bits >> 23) - 127, -126), 126)
    m_keep = (b_bits == 0) | ((b_exponent >= -KEPT_EXPONENT) & (b_exponent <= KEPT_EXPONENT))
    b_exponent = tl.where(m_keep, 0, b_exponent)
    b_power = ((127 - b_exponent) << 23).to(tl.float32, bitcast=True)
    b_squares = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for i_d in range(0, D, BLOCK_D):
        m_x = m_ok[:, None] & (i_d + o_d < D)[None, :]
        b_x = tl.load(p_rows + ((i_d + o_d) * stride_d)[None, :], mask=m_x, other=0.0)
        b_x = b_x.to(tl.float32) * b_power[:, None]
        b_squares += b_x * b_x
    b_sum = tl.sum(b_squares, axis=1)
    b_norm = tl.sqrt_rn(tl.where(b_sum > 0, b_sum, 1.0))
    b_inverse = tl.where(b_sum > 0, tl.div_rn(1.0, b_norm), 0.0)
    tl.store(p_ok + start + o_n, m_ok.to(tl.int8), mask=m_n)
    tl.store(p_power + start + o_n, b_power, mask=m_n)
    tl.store(p_inverse + start + o_n, b_inverse, mask=m_n)
    tl.atomic_max(p_scaled + i_b, tl.max((b_exponent != 0).to(tl.int32), axis=0))


@triton.jit
def similarity_tile(
    p_x,
    p_inverse,
    p_power,
    p_ok,
    start,
    o_m,  # (BLOCK_M,) tokens of the rows
    o_n,  # (BLOCK_N,) tokens of the columns
    n,
    scaled,
    D,
    stride_n,
    stride_d,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) cosines, at most 1, minus infinity where either token takes no part."""
    m_m, m_n = o_m < n, o_n < n
    p_rows, p_columns = p_x + (start + o_m) * stride_n, p_x + (start + o_n) * stride_n
    if scaled != 0:
        b_dot = dot_tile(
            p_rows,
            p_columns,
            m_m,
            m_n,
            tl.load(p_power + start + o_m, mask=m_m, other=1.0)[:, None],
            tl.load(p_power + start + o_n, mask=m_n, other=1.0)[None, :],
            D,
            stride_d,
            True,
            PRECISION,
            BLOCK_D,
        )
    else:
        b_dot = dot_tile(
            p_rows, p_columns, m_m, m_n, 1.0, 1.0, D, stride_d, False, PRECISION, BLOCK_D
        )
    b_inverse_m = tl.load(p_inverse + start + o_m, mask=m_m, other=0.0)
    b_inverse_n = tl.load(p_inverse + start + o_n, mask=m_n, other=0.0)
    m_m = m_m & (tl.load(p_ok + start + o_m, mask=m_m, other=0) != 0)
    m_n = m_n & (tl.load(p_ok + start + o_n, mask=m_n, other=0) != 0)
    # In this order a pair has one similarity, whichever comes first.
    b_cosine = tl.minimum(b_dot * (b_inverse_m[:, None] * b_inverse_n[None, :]), 1.0)
    return tl.where(m_m[:, None] & m_n[None, :], b_cosine, -float("inf"))


def directions(
    x: Tensor, valid: Tensor | None, offsets: Tensor, longest: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What turns inner products into cosines.

    Args:
        x: (T, D) tokens of all images.
        valid: (T,) uint8 or None.
        offsets: (B + 1,) int64.
        longest: most tokens of an image.

    Returns:
        ok (T,) int8, inverse norms (T,) of the tokens times their power (T,) of two, and scaled
        (B,) int32: where it is 0, all powers of the image are 1.
    """
    images, config = offsets.shape[0] - 1, token_config(x.dtype)
    ok = x.new_empty(x.shape[0], dtype=torch.int8)
    inverse, power = (x.new_empty(x.shape[0], dtype=torch.float32) for _ in range(2))
    scaled = x.new_zeros(images, dtype=torch.int32)
    blocks = triton.cdiv(longest, config.block_n)
    directions_fwd_kernel[(images * blocks,)](
        x,
        ok if valid is None else valid,
        offsets,
        ok,
        power,
        inverse,
        scaled,
        x.shape[1],
        longest,
        blocks,
        *x.stride(),
        HAS_VALID=valid is not None,
        BLOCK_N=config.block_n,
        BLOCK_D=config.block_d,
        num_warps=config.num_warps,
    )
    return ok, inverse, power, scaled
