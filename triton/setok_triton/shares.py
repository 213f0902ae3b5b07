"""Products of shares with tokens, on tensor cores: what merging and the backward passes share."""

import triton
import triton.language as tl

from setok_triton.common import flagged


@triton.jit
def share_dot(b_share, b_x, b_out, PRECISION):
    """`b_out` + shares (float32) times tokens.

    A share keeps 16 bits beside bfloat16 tokens: its rounded part and the rest of it, both exact
    in the product. The bits of float16 tokens fit into tf32.
    """
    if b_x.dtype == tl.bfloat16:
        b_high = b_share.to(tl.bfloat16)
        b_low = (b_share - b_high.to(tl.float32)).to(tl.bfloat16)
        b_out = tl.dot(b_high, b_x, b_out)
        b_out = tl.dot(b_low, b_x, b_out)
    else:
        b_out = tl.dot(b_share, b_x.to(tl.float32), b_out, input_precision=PRECISION)
    return b_out


@triton.jit
def share_sums(x, p_ok, p_weights, p_shares, m_c, o_d, start, n, factor, PRECISION, BLOCK_N):
    """Sums over n tokens from `start` on of shares times tokens (C, D), and of shares (C,).

    The weights (T,) multiply the shares, the factor the tokens; either may be None. `p_shares` (C,)
    points to the first share of each row.
    """
    m_d = o_d < x.D
    b_sum = tl.zeros((m_c.shape[0], o_d.shape[0]), dtype=tl.float32)
    b_mass = tl.zeros((m_c.shape[0],), dtype=tl.float32)
    for i_n in range(0, n, BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = flagged(p_ok, start, o_n, o_n < n)
        m_share = m_c[:, None] & m_n[None, :]
        b_share = tl.load(p_shares[:, None] + o_n[None, :], mask=m_share, other=0.0)  # (C, N)
        if p_weights is not None:
            b_share *= tl.load(p_weights + start + o_n, mask=m_n, other=0.0)[None, :]
        else:
            # Not as it was loaded: Triton 3.7.1 has a buffer too few for what both a product on
            # tensor cores and a sum read, and the next load overwrites what the product reads.
            b_share = tl.where(m_share, b_share, 0.0)
        p_block = x.p_x + ((start + o_n) * x.stride_n)[:, None] + o_d.to(tl.int64) * x.stride_d
        b_x = tl.load(p_block, mask=m_n[:, None] & m_d[None, :], other=0.0)  # (N, D)
        if factor is not None:
            b_x = (b_x * factor).to(b_x.dtype)
        b_sum = share_dot(b_share, b_x, b_sum, PRECISION)
        b_mass += tl.sum(b_share, axis=1)
    return b_sum, b_mass
