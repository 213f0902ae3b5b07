"""Kernel of the shares of the tokens in the rows of a soft merge: weight times mask."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.common import COUNTERS, Tokens, locate
from setok_triton.configs import token_config
from setok_triton.scope import MaskLayout

# Tokens of a row are rounded up to a multiple of this, the longest step of a product.
STEP = 64


class Shares(NamedTuple):
    """Shares of all images; rows after the residual are unwritten.

    With bfloat16 tokens a share has two parts: the rounded share and the rounded rest, both exact
    in a product. They keep 16 bits of it.
    """

    p_parts: Tensor  # (B, rows, parts, pitch) bfloat16, or float32; 0 for unusable tokens
    pitch: int  # tokens of a row: a multiple of `STEP`
    p_ok: Tensor  # (T,) int8, 0 for unusable tokens
    p_mass: Tensor | None  # (B, blocks, rows) float32 sums of the shares of each block of tokens


@triton.jit
def row_total(p_sums, i_b, parts, rows, o_c, m_c):
    """Return the sums (C,) of rows o_c over all tokens, from those (B, parts, rows) over blocks."""
    o_k = tl.arange(0, 16)
    p_image = p_sums + i_b * parts * rows + o_c[:, None]
    b_total = tl.zeros((o_c.shape[0], 16), dtype=tl.float32)
    for i_k in range(0, parts, 16):
        m_k = m_c[:, None] & (i_k + o_k < parts)[None, :]
        b_total += tl.load(p_image + ((i_k + o_k) * rows)[None, :], mask=m_k, other=0.0)  # (C, K)
    return tl.sum(b_total, axis=1)


@triton.jit
def finite(x, start, o_n, m_n, BLOCK_D):
    """Return the tokens of mask `m_n` without a non-finite feature."""
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    p_rows = x.p_x + ((start + o_n) * x.stride_n)[:, None]
    b_none = tl.zeros((o_n.shape[0], BLOCK_D), dtype=tl.float32)
    for i_d in range(0, x.D, BLOCK_D):
        m_x = m_n[:, None] & (i_d + o_d < x.D)[None, :]
        b_x = tl.load(p_rows + ((i_d + o_d) * x.stride_d)[None, :], mask=m_x, other=0.0)  # (N, D)
        # NaN if the feature is not finite, else 0.
        b_none += b_x.to(tl.float32) * 0.0
    return m_n & (tl.sum(b_none, axis=1) == 0.0)


@triton.jit(do_not_specialize=COUNTERS)
def shares_fwd_kernel(
    x,
    shares,
    p_offsets,
    p_labels,  # (T,) int64, -1 for masked tokens
    p_weights,  # (T,) float32 or None
    p_counts,  # (B,) int64
    p_masks,
    rows,
    L,
    stride_image,
    stride_row,
    stride_start,
    FINITE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the shares of a block of tokens, their sum in each row, and which are usable.

    FINITE leaves out tokens with a non-finite feature.
    """
    i_b, i_n, start, n = locate(p_offsets, L, shares.pitch // BLOCK_N)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_ok = m_n & (tl.load(p_labels + start + o_n, mask=m_n, other=-1) >= 0)
    if FINITE:
        m_ok = finite(x, start, o_n, m_ok, BLOCK_D)
    tl.store(shares.p_ok + start + o_n, m_ok.to(tl.int8), mask=m_n)
    if p_weights is not None:
        b_w = tl.load(p_weights + start + o_n, mask=m_ok, other=0.0)  # (N,)
    count = tl.load(p_counts + i_b).to(tl.int32)
    p_image = p_masks + i_b * stride_image + start * stride_start + o_n[None, :]
    PARTS: tl.constexpr = 2 if shares.p_parts.dtype.element_ty == tl.bfloat16 else 1
    p_parts = shares.p_parts + i_b * rows * PARTS * shares.pitch + o_n[None, :]
    for i_c in range(0, count + 1, BLOCK_C):
        o_c = i_c + tl.arange(0, BLOCK_C).to(tl.int64)
        m_c = o_c <= count
        m_tile = m_c[:, None] & m_ok[None, :]
        b_share = tl.load(p_image + (o_c * stride_row)[:, None], mask=m_tile, other=0.0)  # (C, N)
        if p_weights is not None:
            b_share *= b_w[None, :]
        p_tile = p_parts + (o_c * PARTS * shares.pitch)[:, None]
        b_high = b_share.to(shares.p_parts.dtype.element_ty)
        tl.store(p_tile, b_high, mask=m_c[:, None])
        if PARTS == 2:
            b_low = (b_share - b_high.to(tl.float32)).to(tl.bfloat16)
            tl.store(p_tile + shares.pitch, b_low, mask=m_c[:, None])
        if shares.p_mass is not None:
            p_mass = shares.p_mass + tl.program_id(0).to(tl.int64) * rows + o_c
            tl.store(p_mass, tl.sum(b_share, axis=1), mask=m_c)


def shares_of(
    x: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    masks: Tensor,
    counts: Tensor,
    offsets: Tensor,
    longest: int,
    means: bool,
) -> tuple[Shares, int]:
    """Return the shares, and the number of blocks of tokens of an image.

    There must be an image and a token; the arguments are those of `merge.merge_soft`.
    """
    images, rows, config = counts.shape[0], masks.shape[-2], token_config(x.dtype)
    pitch = triton.cdiv(longest, STEP) * STEP
    parts, dtype = (2, torch.bfloat16) if x.dtype == torch.bfloat16 else (1, torch.float32)
    blocks = pitch // config.block_n
    shares = Shares(
        *(masks.new_empty(images, rows, parts, pitch, dtype=dtype), pitch),
        x.new_empty(x.shape[0], dtype=torch.int8),
        masks.new_empty(images, blocks, rows) if means else None,
    )
    shares_fwd_kernel[(images * blocks,)](
        *(Tokens.of(x), shares, offsets, labels, weights, counts, masks, rows, longest),
        *MaskLayout.of(masks),
        FINITE=means,
        BLOCK_C=64,
        **config.launch() | {"num_warps": 8 if means else config.num_warps},
        # Some lanes would fuse the product weight * mask into the sum, others not.
        enable_fp_fusion=weights is None,
    )
    return shares, blocks
