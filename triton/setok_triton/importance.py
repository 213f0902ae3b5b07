"""Weights of the tokens in the seed score, (rho * delta) * w."""

import triton
import triton.language as tl

from setok_triton.scope import LARGEST


@triton.jit
def load_weights(p_importance, start, o_n, m_n):
    """Return the weights of tokens, 0 for negative and non-finite ones, and the mask of the others.

    `o_n` is one token or a block; weights outside of the mask `m_n` are 1.
    """
    b_weight = tl.load(p_importance + start + o_n, mask=m_n, other=1.0).to(tl.float32)
    m_fit = (b_weight >= 0) & (b_weight < float("inf"))
    # A weight of -0 must not make a score of -0, whose bits are below those of any other.
    return tl.where(m_fit & (b_weight != 0), b_weight, 0.0), m_fit


@triton.jit
def weighted_score(b_raw, p_importance, start, o_n, m_n):
    """Return rho * delta times the weight, at most the largest float32; unchanged without weights.

    Arguments are as in `load_weights`.
    """
    if p_importance is not None:
        b_weight, _ = load_weights(p_importance, start, o_n, m_n)
        # An infinite score would make its normalised form NaN.
        b_raw = tl.minimum(b_raw * b_weight, LARGEST)
    return b_raw
