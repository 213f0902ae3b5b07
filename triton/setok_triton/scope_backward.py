"""Kernels of the gradients from masks and score to distances, scores and hyper-parameters."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.common import (
    COUNTERS,
    FAR_INDEX,
    Clusters,
    Images,
    Tokens,
    distance_tile,
    flagged,
    locate,
)
from setok_triton.configs import dot_precision, tile_config
from setok_triton.importance import load_weights, weighted_score
from setok_triton.scope import (
    DEEPEST,
    FARTHEST,
    LARGEST,
    MaskLayout,
    alpha_mask,
    load_learnables,
    similarity,
)


@triton.jit(do_not_specialize=COUNTERS)
def seed_rows_bwd_kernel(
    x,
    images,
    p_seeds,  # (B, C) int64
    p_live,  # (B,) int64 number of rows up to the last seed
    p_rows,  # (C + 1, ...) float32 rows stride_row apart
    C,
    L,
    stride_image,
    stride_row,
    stride_start,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the squared distances from BLOCK_M seeds to BLOCK_N tokens."""
    token_blocks = tl.cdiv(L, BLOCK_N)
    at = locate(images.p_offsets, L, tl.cdiv(C, BLOCK_M) * token_blocks)
    i_b, i_tile, start, n = at
    i_c, i_n = i_tile // token_blocks * BLOCK_M, i_tile % token_blocks * BLOCK_N
    live = tl.load(p_live + i_b).to(tl.int32)
    if (i_c < live) & (i_n < n):
        o_c, o_n = i_c + tl.arange(0, BLOCK_M), i_n + tl.arange(0, BLOCK_N)
        # (M,) seeds; FAR_INDEX masks rows without one
        b_seed = tl.load(p_seeds + i_b * C + o_c, mask=o_c < live, other=-1).to(tl.int32)
        o_m = tl.where(b_seed >= 0, b_seed, FAR_INDEX)
        factor = tl.load(images.p_factor + i_b)
        b_d = distance_tile(x, images, at, o_m, o_n, factor, L, PRECISION, BLOCK_D)  # (M, N)
        p_image = p_rows + i_b * stride_image + start * stride_start
        p_tile = p_image + o_c.to(tl.int64)[:, None] * stride_row + o_n[None, :]
        tl.store(p_tile, b_d, mask=(o_c < live)[:, None] & (o_n < n)[None, :])


@triton.jit
def scope_before(p_row, p_seeds, learnables, b_s, m_ok, sigma, step, stride_row, KERNEL, SIGMOID):
    """Return the scope after the steps before `step`.

    `p_row` (N,) points to the first row of distances, `p_seeds` to the seeds of the image.
    """
    b_scope = m_ok.to(tl.float32)
    for _ in range(step):
        b_d = sigma * tl.load(p_row, mask=m_ok, other=0.0)  # (N,)
        b_alpha = alpha_mask(b_d, b_s, learnables, KERNEL, SIGMOID)
        b_scope = tl.where(tl.load(p_seeds) >= 0, b_scope * (1.0 - b_alpha), b_scope)
        p_row += stride_row
        p_seeds += 1
    return b_scope


@triton.jit(do_not_specialize=COUNTERS)
def scope_bwd_kernel(
    images,
    out,  # Clusters of the forward pass
    p_learnable,
    p_grad,  # like the masks
    p_rows,  # like the masks; squared distances before, their gradients after
    p_live,  # (B,) int64
    p_grad_score,  # (T,) float32, added to
    p_total,  # (T,) float32 sum of the distance gradients over the seeds
    p_partial,  # (programs, 4) float64 gradients of the hyper-parameters
    C,
    L,
    stride_image,
    stride_row,
    stride_start,
    KERNEL: tl.constexpr,
    SIGMOID: tl.constexpr,
    SHORT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Run the scope loop backwards for a block of tokens.

    A step computes mask = scope * alpha and left = scope * (1 - alpha). From the last step on:

        dalpha = scope * (dmask - dleft)               # b_g, times the slope of the sigmoid
        dscope = alpha * dmask + (1 - alpha) * dleft   # b_later: dleft of the step before

    SHORT rounds the gradients to the 16 bits that their products with bfloat16 tokens keep. The
    contributions to seed and token then have equal weights, and a common offset cancels.
    """
    i_b, i_n, start, n = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_N))
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_ok = flagged(images.p_ok, start, o_n, m_n)
    b_s = tl.load(out.p_score + start + o_n, mask=m_n, other=0.0)  # (N,)
    sigma = tl.load(images.p_sigma + i_b)
    learnables = load_learnables(p_learnable)
    per_bandwidth, beta, per_temperature, offset = learnables
    count, live = tl.load(out.p_counts + i_b).to(tl.int32), tl.load(p_live + i_b).to(tl.int32)
    p_seed = out.p_seeds + i_b * C
    o_image = i_b * stride_image + start * stride_start + o_n
    o_residual = o_image + count.to(tl.int64) * stride_row
    b_later = tl.load(p_grad + o_residual, mask=m_ok, other=0.0)  # (N,)
    b_scope = tl.load(out.p_masks + o_residual, mask=m_ok, other=0.0)  # (N,)
    b_total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    b_slope = tl.zeros((BLOCK_N,), dtype=tl.float32)
    b_alone = tl.zeros((BLOCK_N,), dtype=tl.float64)
    b_level_sum = tl.zeros((BLOCK_N,), dtype=tl.float64)
    b_score_sum = tl.zeros((BLOCK_N,), dtype=tl.float64)
    b_reach_sum = tl.zeros((BLOCK_N,), dtype=tl.float64)
    for i in range(live):
        step = live - 1 - i
        seed = tl.load(p_seed + step).to(tl.int32)
        o_row = o_image + step.to(tl.int64) * stride_row
        m_row = m_ok & (o_n < tl.where(seed >= 0, n, 0))
        # The residual occupies the row of seed `count`.
        m_own = m_row & (o_n < tl.where(step == count, 0, n))
        b_scaled = sigma * tl.load(p_rows + o_row, mask=m_row, other=0.0)  # (N,)
        b_mask = tl.load(out.p_masks + o_row, mask=m_own, other=0.0)  # (N,)
        b_grad = tl.load(p_grad + o_row, mask=m_own, other=0.0)  # (N,)
        b_d = tl.minimum(b_scaled, FARTHEST)
        b_phi = similarity(b_d, per_bandwidth, KERNEL)
        b_alpha = alpha_mask(b_d, b_s, learnables, KERNEL, SIGMOID)
        if step == count:
            p_row = p_rows + o_image
            b_scope = scope_before(
                p_row, p_seed, learnables, b_s, m_ok, sigma, step, stride_row, KERNEL, SIGMOID
            )
            b_mask = b_scope * b_alpha
        else:
            # Scope before the step = scope after it + mask. mask / alpha would amplify the error of
            # a small alpha.
            b_scope += b_mask
        b_diff = b_grad - b_later
        if SIGMOID:
            # Clamped to finite numbers, because 0 * inf would be NaN.
            b_level = (b_phi - offset - beta * b_s) * per_temperature
            b_level = tl.minimum(tl.maximum(b_level, -1e38), 1e38)
            # 1 - alpha without the cancellation.
            b_rest = tl.exp(tl.minimum(-b_level, DEEPEST)) * b_alpha
            b_g = tl.where(-b_level > DEEPEST, 0.0, b_mask * b_rest * b_diff) * per_temperature
        else:
            b_rest = 1.0 - b_alpha
            b_g = b_scope * b_diff
        b_g = tl.where(m_row, b_g, 0.0)
        b_later = tl.where(m_row, b_alpha * b_grad + b_rest * b_later, b_later)
        b_slope += b_g
        b_score_sum += (b_g * b_s).to(tl.float64)
        if SIGMOID:
            b_alone += b_g.to(tl.float64)
            b_level_sum += (b_g * b_level).to(tl.float64)
        b_away = b_d
        if KERNEL == "epanechnikov":
            b_fall = tl.where(1.0 - b_d * per_bandwidth >= 0, b_g, 0.0)
        else:
            b_fall = b_g * b_phi
        if KERNEL == "laplacian":
            b_away = tl.sqrt(b_d)
        b_reach_sum += (b_fall * b_away).to(tl.float64)
        b_fall = -b_fall * per_bandwidth
        if KERNEL == "laplacian":
            # The subgradient of the root at 0 is 0.
            b_fall = tl.where(b_d > 0, 0.5 * b_fall / tl.where(b_d > 0, b_away, 1.0), 0.0)
        # The distance of a seed to itself is the constant 0, whatever the product rounded to.
        m_grad = m_row & (b_scaled <= FARTHEST) & (o_n != seed)
        b_fall = tl.where(m_grad, sigma * b_fall, 0.0)
        if SHORT:
            b_high = b_fall.to(tl.bfloat16).to(tl.float32)
            b_fall = b_high + (b_fall - b_high).to(tl.bfloat16).to(tl.float32)
        b_total += b_fall
        tl.store(p_rows + o_row, b_fall, mask=m_n)
    tl.store(p_total + start + o_n, b_total, mask=m_n)
    b_before = tl.load(p_grad_score + start + o_n, mask=m_n, other=0.0)  # (N,)
    tl.store(p_grad_score + start + o_n, b_before - beta * b_slope, mask=m_n)
    p_out = p_partial + tl.program_id(0).to(tl.int64) * 4
    h = tl.load(p_learnable).to(tl.float64)
    tl.store(p_out, tl.sum(b_reach_sum, axis=0) / (h * h))
    tl.store(p_out + 1, -tl.sum(b_score_sum, axis=0))
    tl.store(p_out + 2, -tl.sum(b_level_sum, axis=0))
    tl.store(p_out + 3, -tl.sum(b_alone, axis=0))


@triton.jit(do_not_specialize=COUNTERS)
def score_bwd_kernel(
    p_offsets,
    out,  # Clusters of the forward pass
    p_importance,  # (T,) weights of the scores, or None
    p_grad_score,  # (T,) float32
    p_grad_density,  # (T,) float32, added to
    p_grad_delta,  # (T,) float32, added to
    p_grad_importance,  # (T,) float32; None without weights
    C,
    L,
    NORMALISE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add the gradients of the score to those of density and delta, for one image.

    Also write the gradients of the weights.
    """
    i_b, _, start, n = locate(p_offsets, L, 1)
    o_n = tl.arange(0, BLOCK_N)
    top, norm_grad, largest = -1, 0.0, 1.0
    if NORMALISE:
        b_dot = tl.zeros((BLOCK_N,), dtype=tl.float32)
        b_largest = tl.full((BLOCK_N,), -1.0, dtype=tl.float32)
        b_first = tl.full((BLOCK_N,), FAR_INDEX, dtype=tl.int32)
        for i_n in range(0, n, BLOCK_N):
            p_n, m_n = start + i_n + o_n, i_n + o_n < n
            # (N,) each: gradient of the normaliser, and the maximum of rho * delta * w
            b_grad = tl.load(p_grad_score + p_n, mask=m_n, other=0.0)
            b_dot += b_grad * tl.load(out.p_score + p_n, mask=m_n, other=0.0)
            b_raw = tl.load(out.p_density + p_n, mask=m_n, other=-1.0)
            b_raw *= tl.load(out.p_delta + p_n, mask=m_n, other=1.0)
            b_raw = weighted_score(b_raw, p_importance, start, i_n + o_n, m_n)
            b_first = tl.where(b_raw > b_largest, i_n + o_n, b_first)
            b_largest = tl.maximum(b_largest, b_raw)
        highest = tl.max(b_largest, axis=0)
        first = tl.min(tl.where(b_largest == highest, b_first, FAR_INDEX), axis=0)
        seed = tl.load(out.p_seeds + i_b * C).to(tl.int32)
        top = tl.where(seed >= 0, seed, first)
        rho = tl.load(out.p_density + start + top, mask=top < n, other=0.0)
        largest = rho * tl.load(out.p_delta + start + top, mask=top < n, other=0.0)
        largest = weighted_score(largest, p_importance, start, top, top < n)
        # As in the forward pass, a subnormal maximum counts as 0 and divides nothing.
        normal = largest >= 1.1754943508222875e-38
        top = tl.where(normal, top, -1)
        largest = tl.where(normal, largest, 1.0)
        norm_grad = tl.sum(b_dot, axis=0) / largest
    for i_n in range(0, n, BLOCK_N):
        p_n, m_n = start + i_n + o_n, i_n + o_n < n
        # (N,) each: product rule of rho * delta * w
        b_rho = tl.load(out.p_density + p_n, mask=m_n, other=0.0)
        b_delta = tl.load(out.p_delta + p_n, mask=m_n, other=0.0)
        b_raw = tl.load(p_grad_score + p_n, mask=m_n, other=0.0) / largest
        b_raw = tl.where(i_n + o_n == top, b_raw - norm_grad, b_raw)
        if p_importance is not None:
            b_weight, m_fit = load_weights(p_importance, start, i_n + o_n, m_n)
            # A clamped score has no gradient.
            b_raw = tl.where(b_rho * b_delta * b_weight <= LARGEST, b_raw, 0.0)
            b_grad = tl.where(m_fit, b_raw * (b_rho * b_delta), 0.0)
            tl.store(p_grad_importance + p_n, b_grad, mask=m_n)
            b_raw *= b_weight
        b_grad = tl.load(p_grad_density + p_n, mask=m_n, other=0.0)
        tl.store(p_grad_density + p_n, b_grad + b_raw * b_delta, mask=m_n)
        b_grad = tl.load(p_grad_delta + p_n, mask=m_n, other=0.0)
        tl.store(p_grad_delta + p_n, b_grad + b_raw * b_rho, mask=m_n)


def seed_rows(x: Tensor, norm: Tensor, chunk: Chunk, seeds: Tensor, live: Tensor, rows: Tensor):
    """Write the squared distances from the seeds to all tokens.

    Args:
        x: (T, D) tokens of all images.
        norm: (T,) squared norms of the tokens.
        chunk: images of the batch.
        seeds: (B, C) int64 seeds, contiguous.
        live: (B,) int64 number of rows up to the last seed; later rows are unwritten.
        rows: output, (B, C + 1, N) or packed (C + 1, T) float32 distances.
    """
    config, count = tile_config(x.dtype), seeds.shape[1]
    row_blocks = triton.cdiv(count, config.block_m)
    token_blocks = triton.cdiv(chunk.longest, config.block_n)
    seed_rows_bwd_kernel[(chunk.images * row_blocks * token_blocks,)](
        *(Tokens.of(x), Images.of(chunk, norm), seeds, live, rows, count, chunk.longest),
        *MaskLayout.of(rows),
        PRECISION=dot_precision(x.dtype),
        **config.launch(),
    )


def scope_backward(
    chunk: Chunk,
    out: Clusters,
    live: Tensor,
    options,
    grad_masks: Tensor,
    rows: Tensor,
    grad_score: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of distances, scores and hyper-parameters from those of the masks.

    Args:
        chunk: images of the batch.
        out: decisions and values of the forward pass.
        live: (B,) int64 number of rows up to the last seed.
        options: `MaskOptions` of the forward pass.
        grad_masks: gradient of the masks in their shape, float32, contiguous.
        rows: output of `seed_rows`; overwritten with the gradients of these distances.
        grad_score: (T,) float32 gradient of the score, accumulated into.
        dtype: dtype of the tokens.

    Returns:
        (T,) sums of the distance gradients over the seeds, and (4,) gradients of the
        hyper-parameters.
    """
    block = 128
    blocks = triton.cdiv(chunk.longest, block)
    programs = chunk.images * blocks
    total = torch.empty_like(grad_score)
    partial = grad_score.new_empty(programs, 4, dtype=torch.float64)
    scope_bwd_kernel[(programs,)](
        *(Images.of(chunk), out, options.learnable, grad_masks, rows, live, grad_score, total),
        *(partial, out.p_seeds.shape[1], chunk.longest, *MaskLayout.of(rows)),
        KERNEL=options.kernel,
        SIGMOID=options.alpha == "sigmoid",
        SHORT=dtype == torch.bfloat16,
        BLOCK_N=block,
        num_warps=4,
    )
    return total, partial.sum(0).float()


def score_backward(
    chunk: Chunk,
    out: Clusters,
    importance: Tensor | None,
    grads: tuple[Tensor, Tensor, Tensor],
    normalise: bool,
) -> Tensor | None:
    """Add the contributions of the score to the gradients of density and delta.

    Args:
        chunk: images of the batch.
        out: decisions and values of the forward pass.
        importance: (T,) weights of the scores or None.
        grads: (T,) float32 gradients of density and delta, accumulated into, and of the score.
        normalise: flag: the scores were divided by the image's maximum.

    Returns:
        (T,) float32 gradients of the weights, None without weights.
    """
    grad_density, grad_delta, grad_score = grads
    grad_importance = None if importance is None else torch.empty_like(grad_score)
    score_bwd_kernel[(chunk.images,)](
        *(chunk.offsets, out, importance, grad_score, grad_density, grad_delta, grad_importance),
        *(out.p_seeds.shape[1], chunk.longest),
        NORMALISE=normalise,
        BLOCK_N=1024,
    )
    return grad_importance
