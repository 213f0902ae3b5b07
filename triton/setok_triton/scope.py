"""Kernels of the scope loop and its alpha masks (SeTok, Algorithm 1)."""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.common import FAR_INDEX, locate
from setok_triton.configs import row_config

# Scaled distances end here, far beyond the reach of any kernel.
FARTHEST = tl.constexpr(1.8446742974197924e19)
# Levels of the sigmoid end below at minus this.
DEEPEST = tl.constexpr(79.85)


@triton.jit
def similarity(b_d, bandwidth, KERNEL: tl.constexpr):
    """Phi of distances to the seed that end at `FARTHEST`."""
    if KERNEL == "gaussian":
        b_phi = tl.exp(-b_d / bandwidth)
    elif KERNEL == "laplacian":
        b_phi = tl.exp(-tl.sqrt(b_d) / bandwidth)
    else:
        b_phi = tl.maximum(1.0 - b_d / bandwidth, 0.0)
    return b_phi


@triton.jit
def alpha_mask(
    b_d,  # scaled distances to the seed
    b_s,
    p_learnable,  # bandwidth, beta, temperature, offset
    KERNEL: tl.constexpr,
    SIGMOID: tl.constexpr,
):
    """Alpha from the distance to the seed and the token's own score."""
    bandwidth, beta = tl.load(p_learnable), tl.load(p_learnable + 1)
    b_phi = similarity(tl.minimum(b_d, FARTHEST), bandwidth, KERNEL)
    if SIGMOID:
        temperature, offset = tl.load(p_learnable + 2), tl.load(p_learnable + 3)
        b_level = (b_phi - offset - beta * b_s) / temperature
        b_alpha = 1.0 / (1.0 + tl.exp(tl.minimum(-b_level, DEEPEST)))
    else:
        b_alpha = tl.minimum(tl.maximum(b_phi - beta * b_s, 0.01), 0.99)
    return b_alpha


@triton.jit(do_not_specialize=["C", "L"])
def scope_fwd_kernel(
    p_offsets,
    p_ok,
    p_score,
    p_sigma,
    p_taking_part,
    p_distance,  # (images, L, L)
    p_learnable,
    p_masks,  # (C + 1, ...) rows stride_row apart
    p_scope,  # (T,) what is left in the end
    p_seeds,  # (B, C) int64, -1 before; known in a replay
    p_counts,  # (B,) int64
    C,
    L,
    stop_residual,
    min_mass,
    stride_image,
    stride_row,
    stride_start,
    stride_seeds,
    KERNEL: tl.constexpr,
    SIGMOID: tl.constexpr,
    DISTINCT: tl.constexpr,
    REPLAY: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The whole loop of one image: scope, score and eligibility never leave the chip."""
    i_b, _, start, n = locate(p_offsets, L, 1)
    o_n = tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_ok = m_n & (tl.load(p_ok + start + o_n, mask=m_n, other=0) != 0)
    b_s = tl.load(p_score + start + o_n, mask=m_n, other=0.0)
    sigma = tl.load(p_sigma + i_b)
    taking_part = tl.load(p_taking_part + i_b)
    p_image = p_masks + i_b * stride_image + start * stride_start
    p_rows = p_distance + i_b * L * L
    b_scope = m_ok.to(tl.float32)
    b_eligible = m_ok.to(tl.int32)
    count = tl.zeros((), dtype=tl.int32)
    step = tl.zeros((), dtype=tl.int32)
    going = taking_part > 0
    if REPLAY:
        going = C > 0
    while going:
        p_seed = p_seeds + i_b * stride_seeds + step
        if REPLAY:
            seed = tl.load(p_seed).to(tl.int32)
            good = seed >= 0
        else:
            b_priority = tl.where(b_eligible != 0, b_scope * b_s, -1.0)
            highest = tl.max(b_priority, axis=0)
            seed = tl.min(tl.where(b_priority == highest, o_n, FAR_INDEX), axis=0)
            good = highest >= 0
        # No token where there is no seed.
        m_seed = m_ok & (o_n < tl.where(good, n, 0))
        p_row = p_rows + seed.to(tl.int64) * L + o_n
        b_d = sigma * tl.load(p_row, mask=m_seed, other=0.0)
        b_alpha = tl.where(m_seed, alpha_mask(b_d, b_s, p_learnable, KERNEL, SIGMOID), 0.0)
        b_mask = b_scope * b_alpha
        if not REPLAY:
            good = good & (tl.sum(b_mask, axis=0) >= min_mass)
            tl.store(p_seed, seed.to(tl.int64), mask=good)
            b_alpha = tl.where(good, b_alpha, 0.0)
        p_row = p_image + step.to(tl.int64) * stride_row + o_n
        tl.store(p_row, b_mask, mask=o_n < tl.where(good, n, 0))
        b_scope = b_scope * (1.0 - b_alpha)
        if DISTINCT:
            b_eligible = tl.where(o_n == seed, 0, b_eligible)
        step += 1
        going = step < C
        if not REPLAY:
            count += good.to(tl.int32)
            left = tl.sum(b_scope, axis=0) / tl.maximum(taking_part, 1).to(tl.float32)
            going = going & good & (left > stop_residual)
    tl.store(p_scope + start + o_n, b_scope, mask=m_n)
    if not REPLAY:
        tl.store(p_counts + i_b, count.to(tl.int64))


@triton.jit(do_not_specialize=["C", "L"])
def labels_fwd_kernel(
    p_offsets,
    p_ok,
    p_valid,
    p_scope,
    p_seeds,
    p_counts,
    p_masks,
    p_labels,  # (T,) int64
    C,
    L,
    blocks_per_image,
    stride_image,
    stride_row,
    stride_start,
    stride_seeds,
    HAS_VALID: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Residual row, rows without a seed, and the row of each token's largest mask."""
    i_b, i_n, start, n = locate(p_offsets, L, blocks_per_image)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_ok = m_n & (tl.load(p_ok + start + o_n, mask=m_n, other=0) != 0)
    m_valid = m_n
    if HAS_VALID:
        m_valid = m_n & (tl.load(p_valid + start + o_n, mask=m_n, other=0) != 0)
    b_scope = tl.load(p_scope + start + o_n, mask=m_n, other=0.0)
    # A valid token that takes no part is all residual.
    b_residual = tl.where(m_ok, b_scope, m_valid.to(tl.float32))
    count = tl.load(p_counts + i_b)
    p_image = p_masks + i_b * stride_image + start * stride_start + o_n
    b_best = tl.full((BLOCK_N,), -1.0, dtype=tl.float32)
    b_label = tl.full((BLOCK_N,), 0, dtype=tl.int32)
    p_row = p_image
    for row in range(C + 1):
        seed = tl.load(p_seeds + i_b * stride_seeds + row, mask=row < C, other=-1)
        taken = (seed >= 0) & (row != count)
        b_mask = tl.load(p_row, mask=o_n < tl.where(taken, n, 0), other=0.0)
        b_mask = tl.where(row == count, b_residual, b_mask)
        tl.store(p_row, b_mask, mask=o_n < tl.where(taken, 0, n))
        b_label = tl.where(b_mask > b_best, row, b_label)
        b_best = tl.maximum(b_best, b_mask)
        p_row += stride_row
    tl.store(p_labels + start + o_n, tl.where(m_valid, b_label, -1).to(tl.int64), mask=m_n)


@dataclass(frozen=True)
class MaskLayout:
    """Where the masks of an image lie: `image` and `start` strides, and that of the rows."""

    image: int
    row: int
    start: int

    @classmethod
    def of(cls, masks: Tensor) -> "MaskLayout":
        """Of (B, C + 1, N), or of packed (C + 1, T)."""
        if masks.dim() == 3:
            return cls(masks.stride(0), masks.stride(1), 0)
        return cls(0, masks.stride(0), 1)


def scope(
    chunk: Chunk,
    score: Tensor,
    options,
    loop,
    masks: Tensor,
    left: Tensor,
    seeds: Tensor,
    counts: Tensor,
    replay: bool,
) -> None:
    """Runs the loop of each image of a dense chunk.

    Args:
        chunk: the images.
        score: (T,).
        options: the `MaskOptions`.
        loop: the `LoopOptions`.
        masks: written; (images, C + 1, N) of the chunk, or packed (C + 1, T).
        left: written; (T,) scope in the end.
        seeds: (images, C) int64, written (-1 before) or replayed.
        counts: (images,) int64, written or replayed.
        replay: whether the seeds are known.
    """
    layout, launch = MaskLayout.of(masks), row_config(chunk.longest)
    scope_fwd_kernel[(chunk.images,)](
        chunk.offsets,
        chunk.ok,
        score,
        chunk.sigma,
        chunk.taking_part,
        chunk.rows,
        options.learnable,
        masks,
        left,
        seeds,
        counts,
        loop.max_clusters,
        chunk.longest,
        loop.stop_residual,
        loop.min_mass,
        layout.image,
        layout.row,
        layout.start,
        seeds.stride(0),
        KERNEL=options.kernel,
        SIGMOID=options.alpha == "sigmoid",
        DISTINCT=loop.distinct_seeds,
        REPLAY=replay,
        BLOCK_N=launch.block_n,
        num_warps=launch.num_warps,
    )


def labels(
    chunk: Chunk,
    valid: Tensor | None,
    left: Tensor,
    seeds: Tensor,
    counts: Tensor,
    masks: Tensor,
    out: Tensor,
) -> None:
    """Completes the masks of a chunk and writes the labels into `out` (T,); see `scope`."""
    layout, block = MaskLayout.of(masks), 128
    blocks = triton.cdiv(chunk.longest, block)
    labels_fwd_kernel[(chunk.images * blocks,)](
        chunk.offsets,
        chunk.ok,
        chunk.ok if valid is None else valid,
        left,
        seeds,
        counts,
        masks,
        out,
        seeds.shape[1],
        chunk.longest,
        blocks,
        layout.image,
        layout.row,
        layout.start,
        seeds.stride(0),
        HAS_VALID=valid is not None,
        BLOCK_N=block,
        num_warps=4,
    )
