"""Gradients of masks and weights of a soft merge, from the inner products of rows and tokens."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from setok_triton.shares import row_total


class Merged(NamedTuple):
    """Sums of a merge over blocks of tokens, see `row_products.RowSums`, and the gradients."""

    p_weights: Tensor | None  # (T,) float32
    p_ok: Tensor  # (T,) int8
    p_mass: Tensor  # (B, blocks, rows) float32
    p_mean: Tensor  # (B, blocks, rows) float32
    p_products: Tensor | None  # E before, the gradient of the masks after, in their layout
    p_grad_weights: Tensor | None  # (T,) float32
    eps: float


@triton.jit
def token_weight(merged, start, o_n, m_n):
    """Return the weights of the tokens (N,), 0 for unusable ones."""
    m_ok = tl.load(merged.p_ok + start + o_n, mask=m_n, other=0) != 0  # (N,)
    b_w = m_ok.to(tl.float32)
    if merged.p_weights is not None:
        b_w = tl.load(merged.p_weights + start + o_n, mask=m_ok, other=0.0)
    return b_w


@triton.jit
def mask_gradients(
    p_masks, merged, o_tile, start, o_n, m_n, i_b, count, rows, parts, stride_row, BLOCK_C
):
    """Write dM_ci = w_i dA_ci and dw_i = sum_c M_ci dA_ci, where dA_ci = (E_ci - mean_c) / m_c."""
    m_ok = tl.load(merged.p_ok + start + o_n, mask=m_n, other=0) != 0
    b_w = token_weight(merged, start, o_n, m_n)
    b_sum = tl.zeros((o_n.shape[0],), dtype=tl.float32)
    for i_c in range(0, rows, BLOCK_C):
        o_c = i_c + tl.arange(0, BLOCK_C)
        # Rows after the residual stay 0.
        m_c = o_c <= count
        b_mass = row_total(merged.p_mass, i_b, parts, rows, o_c, m_c) + merged.eps
        b_mass = tl.where(m_c, b_mass, 1.0)
        b_mean = row_total(merged.p_mean, i_b, parts, rows, o_c, m_c) / b_mass
        o_rows = o_tile + (o_c.to(tl.int64) * stride_row)[None, :]
        m_tile = m_ok[:, None] & m_c[None, :]
        p_products = merged.p_products + o_rows
        b_grad = tl.load(p_products, mask=m_tile, other=0.0) - b_mean[None, :]  # (N, C)
        b_grad = tl.where(m_tile, b_grad / b_mass[None, :], 0.0)
        b_m = tl.load(p_masks + o_rows, mask=m_tile, other=0.0)  # (N, C)
        b_sum += tl.sum(b_grad * b_m, axis=1)
        tl.store(p_products, b_w[:, None] * b_grad, mask=m_n[:, None] & (o_c < rows)[None, :])
    if merged.p_grad_weights is not None:
        tl.store(merged.p_grad_weights + start + o_n, b_sum, mask=m_n)
