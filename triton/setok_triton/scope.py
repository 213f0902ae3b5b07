"""Alpha masks (SeTok, Algorithm 1), and the kernel of residual and labels after `stream.py`."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.common import COUNTERS, FAR_INDEX, Images, flagged, locate

# Upper bound of scaled distances, far beyond the support of any kernel.
FARTHEST = tl.constexpr(1.8446742974197924e19)
# Largest finite float32.
LARGEST = tl.constexpr(3.4028234663852886e38)
# Lower bound of the sigmoid's argument is minus this.
DEEPEST = tl.constexpr(79.85)


@triton.jit
def similarity(b_d, per_bandwidth, KERNEL):
    """Return phi of distances to the seed, which must be at most `FARTHEST`."""
    if KERNEL == "gaussian":
        b_phi = tl.exp(-b_d * per_bandwidth)
    elif KERNEL == "laplacian":
        b_phi = tl.exp(-tl.sqrt(b_d) * per_bandwidth)
    else:
        b_phi = tl.maximum(1.0 - b_d * per_bandwidth, 0.0)
    return b_phi


@triton.jit
def load_learnables(p_learnable):
    """Return 1 / bandwidth, beta, 1 / temperature and offset.

    Called before a loop, because loads and divisions inside would delay every step.
    """
    return (
        tl.minimum(tl.div_rn(1.0, tl.load(p_learnable)), LARGEST),
        tl.load(p_learnable + 1),
        tl.minimum(tl.div_rn(1.0, tl.load(p_learnable + 2)), LARGEST),
        tl.load(p_learnable + 3),
    )


@triton.jit
def alpha_mask(b_d, b_s, learnables, KERNEL, SIGMOID):
    """Return alpha from the scaled distance to the seed and the token's own score."""
    per_bandwidth, beta, per_temperature, offset = learnables
    b_phi = similarity(tl.minimum(b_d, FARTHEST), per_bandwidth, KERNEL)
    if SIGMOID:
        b_level = (b_phi - offset - beta * b_s) * per_temperature
        b_alpha = 1.0 / (1.0 + tl.exp(tl.minimum(-b_level, DEEPEST)))
    else:
        b_alpha = tl.minimum(tl.maximum(b_phi - beta * b_s, 0.01), 0.99)
    return b_alpha


@triton.jit
def number_of_steps(p_budget, i_b, C):
    """Return the maximum number of seeds of an image, C without budgets."""
    if p_budget is not None:
        C = tl.minimum(tl.maximum(tl.load(p_budget + i_b), 0), C).to(tl.int32)
    return C


@triton.jit(do_not_specialize=COUNTERS)
def labels_fwd_kernel(
    images,
    p_valid,  # (T,) uint8 or None
    p_scope,  # (T,) float32
    p_seeds,  # (B, C) int64
    p_counts,  # (B,) int64
    p_masks,  # (C + 1, ...) rows stride_row apart
    p_labels,  # (T,) int64
    C,
    L,
    stride_image,
    stride_row,
    stride_start,
    stride_seeds,
    EXACT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write the residual row, rows without a seed, and the row of each token's maximum mask.

    EXACT labels never name the residual, and a seed has its own row.
    """
    i_b, i_n, start, n = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_N))
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_ok = flagged(images.p_ok, start, o_n, m_n)
    m_valid = flagged(p_valid, start, o_n, m_n)
    b_scope = tl.load(p_scope + start + o_n, mask=m_n, other=0.0)  # (N,)
    # A valid token with a non-finite feature is all residual.
    b_residual = tl.where(m_ok, b_scope, m_valid.to(tl.float32))
    count = tl.load(p_counts + i_b)
    p_image = p_masks + i_b * stride_image + start * stride_start + o_n
    b_best = tl.full((BLOCK_N,), -1.0, dtype=tl.float32)
    b_label = tl.full((BLOCK_N,), 0, dtype=tl.int32)
    p_seed = p_seeds + i_b * stride_seeds
    # Several rows at once: their loads are under way together.
    for i_row in range(0, C + 1, ROWS):
        o_row = i_row + tl.arange(0, ROWS)
        b_seed = tl.load(p_seed + o_row, mask=o_row < C, other=-1)  # (rows,)
        m_kept = ((b_seed >= 0) & (o_row != count))[:, None]
        p_rows = p_image[None, :] + o_row.to(tl.int64)[:, None] * stride_row
        b_masks = tl.load(p_rows, mask=m_kept & m_n[None, :], other=0.0)  # (rows, N)
        b_masks = tl.where((o_row == count)[:, None], b_residual[None, :], b_masks)
        tl.store(p_rows, b_masks, mask=(o_row <= C)[:, None] & m_n[None, :] & ~m_kept)
        if EXACT:
            b_masks = tl.where(o_n[None, :] == b_seed[:, None], float("inf"), b_masks)
        last = count - 1 if EXACT else C + count * 0
        b_masks = tl.where((o_row <= last)[:, None], b_masks, -1.0)
        b_max = tl.max(b_masks, axis=0)
        m_max = b_masks == b_max[None, :]
        b_first = tl.min(tl.where(m_max, o_row[:, None], FAR_INDEX), axis=0)
        b_label = tl.where(b_max > b_best, b_first, b_label)
        b_best = tl.maximum(b_best, b_max)
    if EXACT:
        # Without a seed, row 0 is the residual.
        b_label = tl.where(m_ok, b_label, count.to(tl.int32))
    tl.store(p_labels + start + o_n, tl.where(m_valid, b_label, -1).to(tl.int64), mask=m_n)


class MaskLayout(NamedTuple):
    """Strides of the masks over images, rows, and (packed) the image's first token."""

    image: int
    row: int
    start: int

    @classmethod
    def of(cls, masks: Tensor) -> "MaskLayout":
        """Build the layout of (B, C + 1, N) masks, or packed (C + 1, T)."""
        if masks.dim() == 3:
            return cls(masks.stride(0), masks.stride(1), 0)
        return cls(0, masks.stride(0), 1)


def labels(
    chunk: Chunk,
    valid: Tensor | None,
    left: Tensor,
    seeds: Tensor,
    counts: Tensor,
    masks: Tensor,
    out: Tensor,
    exact: bool,
) -> None:
    """Complete the masks of a chunk and write the labels into `out` (T,).

    `left` (T,) is the final scope, and `exact` is that of `LoopOptions`; the other arguments are
    those of `image.cluster_images`.
    """
    block = 128
    blocks = triton.cdiv(chunk.longest, block)
    labels_fwd_kernel[(chunk.images * blocks,)](
        *(Images.of(chunk), valid, left, seeds, counts, masks, out, seeds.shape[1], chunk.longest),
        *(*MaskLayout.of(masks), seeds.stride(0)),
        EXACT=exact,
        ROWS=8,
        BLOCK_N=block,
        num_warps=4,
    )
