"""Products of shares with tokens, on tensor cores: what merging and the backward passes share."""

import triton
import triton.language as tl


@triton.jit
def share_dot(b_share, b_x, b_out, PRECISION: tl.constexpr):
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
def share_sums(
    p_x,
    p_usable,
    p_weights,
    p_shares,  # (BLOCK_C,) first share of each row
    m_c,
    o_d,  # (BLOCK_D,) features
    start,
    n,
    factor,
    D,
    stride_n,
    stride_d,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Sums over the tokens of shares times scaled tokens (BLOCK_C, BLOCK_D), and of shares."""
    m_d = o_d < D
    b_sum = tl.zeros((m_c.shape[0], o_d.shape[0]), dtype=tl.float32)
    b_mass = tl.zeros((m_c.shape[0],), dtype=tl.float32)
    for i_n in range(0, n, BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = (o_n < n) & (tl.load(p_usable + start + o_n, mask=o_n < n, other=0) != 0)
        m_share = m_c[:, None] & m_n[None, :]
        b_share = tl.load(p_shares[:, None] + o_n[None, :], mask=m_share, other=0.0)
        if WEIGHTED:
            b_share *= tl.load(p_weights + start + o_n, mask=m_n, other=0.0)[None, :]
        p_block = p_x + ((start + o_n) * stride_n)[:, None] + (o_d.to(tl.int64) * stride_d)
        b_x = tl.load(p_block, mask=m_n[:, None] & m_d[None, :], other=0.0)
        if SCALED:
            b_x = (b_x * factor).to(b_x.dtype)
        b_sum = share_dot(b_share, b_x, b_sum, PRECISION)
        b_mass += tl.sum(b_share, axis=1)
    return b_sum, b_mass
