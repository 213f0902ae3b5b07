"""Weighted sums of tokens on tensor cores, for the merge and the backward passes.

A coefficient is the weight of a token in a row: a mask value, or the gradient of a distance.
"""

import triton
import triton.language as tl

from setok_triton.common import flagged


@triton.jit
def weighted_dot(b_coef, b_x, b_out, PRECISION):
    """Return `b_out` + float32 coefficients times tokens.

    With bfloat16 tokens a coefficient keeps 16 bits: its rounded part and the rounded rest, both
    exact in the product. The bits of float16 tokens fit into tf32.
    """
    if b_x.dtype == tl.bfloat16:
        b_high = b_coef.to(tl.bfloat16)
        b_low = (b_coef - b_high.to(tl.float32)).to(tl.bfloat16)
        b_out = tl.dot(b_high, b_x, b_out)
        b_out = tl.dot(b_low, b_x, b_out)
    else:
        b_out = tl.dot(b_coef, b_x.to(tl.float32), b_out, input_precision=PRECISION)
    return b_out


@triton.jit
def weighted_sums(x, p_ok, p_weights, p_coefs, m_c, o_d, start, n, factor, PRECISION, BLOCK_N):
    """Return sums of coefficients times tokens (C, D), and of coefficients (C,), over an image.

    The weights (T,) multiply the coefficients, the factor multiplies the tokens; either may be
    None. `p_coefs` (C,) points to the first coefficient of each row.
    """
    m_d = o_d < x.D
    b_sum = tl.zeros((m_c.shape[0], o_d.shape[0]), dtype=tl.float32)
    b_mass = tl.zeros((m_c.shape[0],), dtype=tl.float32)
    for i_n in range(0, n, BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = flagged(p_ok, start, o_n, o_n < n)
        m_coef = m_c[:, None] & m_n[None, :]
        b_coef = tl.load(p_coefs[:, None] + o_n[None, :], mask=m_coef, other=0.0)  # (C, N)
        if p_weights is not None:
            b_coef *= tl.load(p_weights + start + o_n, mask=m_n, other=0.0)[None, :]  # (1, N)
        else:
            # A copy of the loaded block: Triton 3.7.1 allocates one buffer too few for a block that
            # both a tensor-core product and a sum read, and the next load overwrites it.
            b_coef = tl.where(m_coef, b_coef, 0.0)
        p_block = x.p_x + ((start + o_n) * x.stride_n)[:, None] + o_d.to(tl.int64) * x.stride_d
        b_x = tl.load(p_block, mask=m_n[:, None] & m_d[None, :], other=0.0)  # (N, D)
        if factor is not None:
            b_x = (b_x * factor).to(b_x.dtype)
        b_sum = weighted_dot(b_coef, b_x, b_sum, PRECISION)
        b_mass += tl.sum(b_coef, axis=1)
    return b_sum, b_mass
