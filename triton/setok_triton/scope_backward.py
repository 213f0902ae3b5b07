"""Kernels of the gradients from masks and score to distances, scores and hyper-parameters."""

import dataclasses
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.adjacency import ScoreGrads
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
from setok_triton.importance import weighted_score
from setok_triton.scope import (
    DEEPEST,
    FARTHEST,
    MaskLayout,
    alpha_mask,
    load_learnables,
    similarity,
)

# Columns of a row of distances to the seeds are a multiple of this, for loads of whole sectors.
ROW = tl.constexpr(8)
# Steps of the scope loop whose loads are issued at once.
STEPS = tl.constexpr(4)


@triton.jit
def row_length(C):
    """Return the columns of a token's row of distances to the seeds, or of their gradients."""
    return tl.cdiv(C, ROW) * ROW


@triton.jit
def rows_in_use(p_seeds, i_b, C):
    """Return the number of clusters of an image up to the last one with a seed."""
    o_c = tl.arange(0, 64)
    live = tl.zeros((), dtype=tl.int32)
    for i_c in range(0, C, 64):
        b_seed = tl.load(p_seeds + i_b * C + i_c + o_c, mask=i_c + o_c < C, other=-1)  # (C,)
        live = tl.maximum(live, tl.max(tl.where(b_seed >= 0, i_c + o_c + 1, 0), axis=0))
    return live


@triton.jit(do_not_specialize=COUNTERS)
def seed_rows_bwd_kernel(
    x,
    images,
    p_seeds,  # (B, C) int64
    p_rows,  # (T, pitch) float32
    C,
    L,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the squared distances from BLOCK_M tokens to BLOCK_N seeds."""
    seed_blocks = tl.cdiv(C, BLOCK_N)
    at = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_M) * seed_blocks)
    i_b, i_tile, start, n = at
    i_n, i_c = i_tile // seed_blocks * BLOCK_M, i_tile % seed_blocks * BLOCK_N
    if (i_c < rows_in_use(p_seeds, i_b, C)) & (i_n < n):
        o_n, o_c = i_n + tl.arange(0, BLOCK_M), i_c + tl.arange(0, BLOCK_N)
        # (C,) seeds; FAR_INDEX masks columns without one
        b_seed = tl.load(p_seeds + i_b * C + o_c, mask=o_c < C, other=-1).to(tl.int32)
        b_seed = tl.where(b_seed >= 0, b_seed, FAR_INDEX)
        factor = tl.load(images.p_factor + i_b)
        b_d = distance_tile(x, images, at, o_n, b_seed, factor, L, PRECISION, BLOCK_D)  # (N, C)
        p_tile = p_rows + ((start + o_n) * row_length(C))[:, None] + o_c[None, :]
        tl.store(p_tile, b_d, mask=(o_n < n)[:, None] & (o_c < row_length(C))[None, :])


@triton.jit
def scope_before(p_row, p_seeds, learnables, b_s, m_ok, sigma, step, KERNEL, SIGMOID):
    """Return the scope after the steps before `step`.

    `p_row` (N,) points to the distances of each token, `p_seeds` to the seeds of the image.
    """
    b_scope = m_ok.to(tl.float32)
    for _ in range(step):
        b_d = sigma * tl.load(p_row, mask=m_ok, other=0.0)  # (N,)
        b_alpha = alpha_mask(b_d, b_s, learnables, KERNEL, SIGMOID)
        b_scope = tl.where(tl.load(p_seeds) >= 0, b_scope * (1.0 - b_alpha), b_scope)
        p_row += 1
        p_seeds += 1
    return b_scope


class StepLoads(NamedTuple):
    """What a step of the scope loop reads."""

    seed: tl.tensor
    m_row: tl.tensor  # (N,) tokens with this seed
    b_mask: tl.tensor  # (N,) row of the masks
    b_grad: tl.tensor  # (N,) its gradient


class ScopeState(NamedTuple):
    """What the scope loop carries backwards, (N,) each."""

    b_scope: tl.tensor  # scope after the step
    b_later: tl.tensor  # gradient of this scope
    b_total: tl.tensor  # sum of the distance gradients
    b_slope: tl.tensor  # sum of the gradients of alpha's argument
    b_alone: tl.tensor  # float64 from here on: sums of the gradients of the hyper-parameters
    b_level_sum: tl.tensor
    b_score_sum: tl.tensor
    b_reach_sum: tl.tensor


@triton.jit
def load_step(p_masks, p_grad, p_seed, o_n, n, m_ok, o_image, stride_row, step, count, live):
    """Return the `StepLoads` of a step; none from step `live` on."""
    is_step = step < live
    seed = tl.load(p_seed + step, mask=is_step, other=-1).to(tl.int32)
    o_row = o_image + step.to(tl.int64) * stride_row
    m_load = m_ok & (o_n < tl.where(is_step, n, 0))
    b_mask = tl.load(p_masks + o_row, mask=m_load, other=0.0)  # (N,)
    b_grad = tl.load(p_grad + o_row, mask=m_load, other=0.0)  # (N,)
    # Selected after the loads, which need not wait for the seed.
    m_row = m_ok & (o_n < tl.where(seed >= 0, n, 0))
    # The residual occupies the row of seed `count`.
    m_own = m_row & (o_n < tl.where(step == count, 0, n))
    b_mask, b_grad = tl.where(m_own, b_mask, 0.0), tl.where(m_own, b_grad, 0.0)
    return StepLoads(seed, m_row, b_mask, b_grad)


@triton.jit
def step_back(
    state,
    loads,
    b_scaled,  # (N,) scaled distances to the seed
    b_s,
    sigma,
    learnables,
    p_row,
    p_seed,
    m_ok,
    o_n,
    step,
    residual,  # step whose row of the masks holds the residual, or None
    KERNEL,
    SIGMOID,
    SHORT,
):
    """Return the `ScopeState` before a step, and the gradients (N,) of the distances."""
    b_scope, b_later, b_total, b_slope, b_alone, b_level_sum, b_score_sum, b_reach_sum = state
    seed, m_row, b_mask, b_grad = loads
    per_bandwidth, beta, per_temperature, offset = learnables
    b_scaled = tl.where(m_row, b_scaled, 0.0)
    b_d = tl.minimum(b_scaled, FARTHEST)
    b_phi = similarity(b_d, per_bandwidth, KERNEL)
    b_alpha = alpha_mask(b_d, b_s, learnables, KERNEL, SIGMOID)
    # Scope before the step = scope after it + mask. mask / alpha would amplify the error of a small
    # alpha.
    b_scope += b_mask
    if residual is not None:
        is_residual = step == residual
        if is_residual:
            b_scope = scope_before(
                p_row, p_seed, learnables, b_s, m_ok, sigma, step, KERNEL, SIGMOID
            )
            b_mask = b_scope * b_alpha
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
    sums = b_alone, b_level_sum, b_score_sum, b_reach_sum
    return ScopeState(b_scope, b_later, b_total, b_slope, *sums), b_fall


@triton.jit
def columns(b):
    """Return the four columns of a block (N, 4)."""
    even, odd = tl.split(tl.reshape(b, (b.shape[0], 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def store_gradients(p_row, pitch, first, b_0, b_1, b_2, b_3, m_n, SHORT):
    """Write the gradients (N,) of four steps; if SHORT as two bfloat16, the second `pitch` on."""
    b = tl.join(tl.join(b_0, b_2), tl.join(b_1, b_3))
    b = tl.reshape(b, (b_0.shape[0], STEPS))
    p_columns = p_row[:, None] + first + tl.arange(0, STEPS)[None, :]
    if SHORT:
        b_high = b.to(tl.bfloat16)
        tl.store(p_columns, b_high, mask=m_n[:, None])
        b_low = (b - b_high.to(tl.float32)).to(tl.bfloat16)
        tl.store(p_columns + pitch, b_low, mask=m_n[:, None])
    else:
        tl.store(p_columns, b, mask=m_n[:, None])


@triton.jit
def steps_back(state, loads, b_d, fixed, step, count, KERNEL, SIGMOID, SHORT):
    """Run `step_back` for four steps from the last, with their loads and distances.

    Returns the state, and the gradients of the four distances. `fixed` are the arguments that all
    steps share.
    """
    state, b_3 = step_back(state, loads[3], b_d[3], *fixed, step + 3, count, KERNEL, SIGMOID, SHORT)
    state, b_2 = step_back(state, loads[2], b_d[2], *fixed, step + 2, count, KERNEL, SIGMOID, SHORT)
    state, b_1 = step_back(state, loads[1], b_d[1], *fixed, step + 1, count, KERNEL, SIGMOID, SHORT)
    state, b_0 = step_back(state, loads[0], b_d[0], *fixed, step, count, KERNEL, SIGMOID, SHORT)
    return state, (b_0, b_1, b_2, b_3)


@triton.jit(do_not_specialize=COUNTERS)
def scope_bwd_kernel(
    images,
    out,  # Clusters of the forward pass
    p_learnable,
    p_grad,  # like the masks
    p_rows,  # (T, pitch) float32 squared distances
    p_coefs,  # (T, pitch) float32 gradients of the distances, or (T, 2 pitch) bfloat16
    p_grad_score,  # (T,) float32 gradient of the score, or None
    p_score,  # (T,) float32 output: that and the gradient by the masks
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

    SHORT rounds the gradients to the 16 bits that their products with bfloat16 tokens keep: a
    bfloat16 and the bfloat16 of its rest. The contributions to seed and token then have equal
    weights, and a common offset cancels.
    """
    i_b, i_n, start, n = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_N))
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_ok = flagged(images.p_ok, start, o_n, m_n)
    b_s = tl.load(out.p_score + start + o_n, mask=m_n, other=0.0)  # (N,)
    sigma = tl.load(images.p_sigma + i_b)
    learnables = load_learnables(p_learnable)
    beta = learnables[1]
    count, live = tl.load(out.p_counts + i_b).to(tl.int32), rows_in_use(out.p_seeds, i_b, C)
    p_seed = out.p_seeds + i_b * C
    o_image = i_b * stride_image + start * stride_start + o_n
    pitch = row_length(C)
    p_row = p_rows + (start + o_n) * pitch
    p_coef = p_coefs + (start + o_n) * (2 * pitch if SHORT else pitch)
    o_residual = o_image + count.to(tl.int64) * stride_row
    b_zero = tl.zeros((BLOCK_N,), dtype=tl.float32)
    b_none = tl.zeros((BLOCK_N,), dtype=tl.float64)
    state = ScopeState(
        tl.load(out.p_masks + o_residual, mask=m_ok, other=0.0),
        tl.load(p_grad + o_residual, mask=m_ok, other=0.0),
        *(b_zero, b_zero, b_none, b_none, b_none, b_none),
    )
    groups = tl.cdiv(live, STEPS)
    for i in range(groups):
        step = (groups - 1 - i) * STEPS
        # All loads come first: they wait together.
        given = (out.p_masks, p_grad, p_seed, o_n, n, m_ok, o_image, stride_row)
        loads_3 = load_step(*given, step + 3, count, live)
        loads_2 = load_step(*given, step + 2, count, live)
        loads_1 = load_step(*given, step + 1, count, live)
        loads_0 = load_step(*given, step, count, live)
        p_step = p_row[:, None] + step + tl.arange(0, STEPS)[None, :]
        b_0, b_1, b_2, b_3 = columns(sigma * tl.load(p_step, mask=m_n[:, None], other=0.0))
        fixed = (b_s, sigma, learnables, p_row, p_seed, m_ok, o_n)
        loads, b_d = (loads_0, loads_1, loads_2, loads_3), (b_0, b_1, b_2, b_3)
        if (count >= step) & (count < tl.minimum(step + STEPS, live)):
            state, b_d = steps_back(state, loads, b_d, fixed, step, count, KERNEL, SIGMOID, SHORT)
        else:
            # Without the test in every step, the steps overlap.
            state, b_d = steps_back(state, loads, b_d, fixed, step, None, KERNEL, SIGMOID, SHORT)
        store_gradients(p_coef, pitch, step, *b_d, m_n, SHORT)
    for i in range(groups, pitch // STEPS):
        store_gradients(p_coef, pitch, i * STEPS, b_zero, b_zero, b_zero, b_zero, m_n, SHORT)
    tl.store(p_total + start + o_n, state.b_total, mask=m_n)
    b_slope = -beta * state.b_slope
    if p_grad_score is not None:
        b_slope += tl.load(p_grad_score + start + o_n, mask=m_n, other=0.0)
    tl.store(p_score + start + o_n, b_slope, mask=m_n)
    p_out = p_partial + tl.program_id(0).to(tl.int64) * 4
    h = tl.load(p_learnable).to(tl.float64)
    tl.store(p_out, tl.sum(state.b_reach_sum, axis=0) / (h * h))
    tl.store(p_out + 1, -tl.sum(state.b_score_sum, axis=0))
    tl.store(p_out + 2, -tl.sum(state.b_level_sum, axis=0))
    tl.store(p_out + 3, -tl.sum(state.b_alone, axis=0))


@triton.jit(do_not_specialize=COUNTERS)
def score_bwd_kernel(
    p_offsets,
    out,  # Clusters of the forward pass
    p_importance,  # (T,) weights of the scores, or None
    scores,  # ScoreGrads
    C,
    L,
    NORMALISE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write the maximum of rho * delta * w, its token, and its gradient, for one image."""
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
            b_grad = tl.load(scores.p_grad + p_n, mask=m_n, other=0.0)
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
    tl.store(scores.p_norm + i_b * 2, largest)
    tl.store(scores.p_norm + i_b * 2 + 1, norm_grad)
    tl.store(scores.p_top + i_b, top)


def seed_rows(x: Tensor, norm: Tensor, chunk: Chunk, seeds: Tensor) -> Tensor:
    """Return the squared distances from all tokens to the seeds of their image.

    Args:
        x: (T, D) tokens of all images.
        norm: (T,) squared norms of the tokens.
        chunk: images of the batch.
        seeds: (B, C) int64 seeds, contiguous.

    Returns:
        (T, pitch) float32 distances, unwritten behind the last seed.
    """
    config, count = tile_config(x.dtype), seeds.shape[1]
    # More tokens than seeds: the other way round.
    config = dataclasses.replace(config, block_m=config.block_n, block_n=config.block_m)
    rows = norm.new_empty(x.shape[0], triton.cdiv(count, ROW.value) * ROW.value)
    token_blocks = triton.cdiv(chunk.longest, config.block_m)
    seed_blocks = triton.cdiv(count, config.block_n)
    seed_rows_bwd_kernel[(chunk.images * token_blocks * seed_blocks,)](
        *(Tokens.of(x), Images.of(chunk, norm), seeds, rows, count, chunk.longest),
        PRECISION=dot_precision(x.dtype),
        **config.launch(),
    )
    return rows


def scope_backward(
    chunk: Chunk,
    out: Clusters,
    options,
    grad_masks: Tensor,
    rows: Tensor,
    grad_score: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of distances, scores and hyper-parameters from those of the masks.

    Args:
        chunk: images of the batch.
        out: decisions and values of the forward pass.
        options: `MaskOptions` of the forward pass.
        grad_masks: gradient of the masks in their shape, float32, contiguous.
        rows: output of `seed_rows`.
        grad_score: (T,) float32 gradient of the score or None.
        dtype: dtype of the tokens.

    Returns:
        (T, pitch) float32 gradients of the distances, or (T, 2 pitch) bfloat16 of bfloat16 tokens,
        (T,) their sums over the seeds, (T,) gradient of the score with that by the masks, and (4,)
        gradients of the hyper-parameters.
    """
    block, short = 128, dtype == torch.bfloat16
    coefs = torch.empty_like(rows)
    if short:
        coefs = coefs.view(torch.bfloat16)
    programs = chunk.images * triton.cdiv(chunk.longest, block)
    total, score = (rows.new_empty(rows.shape[0]) for _ in range(2))
    partial = rows.new_empty(programs, 4, dtype=torch.float64)
    scope_bwd_kernel[(programs,)](
        *(Images.of(chunk), out, options.learnable, grad_masks, rows, coefs),
        *(grad_score, score, total, partial, out.p_seeds.shape[1], chunk.longest),
        *MaskLayout.of(out.p_masks),
        KERNEL=options.kernel,
        SIGMOID=options.alpha == "sigmoid",
        SHORT=short,
        BLOCK_N=block,
        num_warps=4,
        # Without a limit the assembler spills some registers to fit more programs.
        maxnreg=96,
    )
    return coefs, total, score, partial.sum(0).float()


def score_backward(
    chunk: Chunk, out: Clusters, importance: Tensor | None, grad: Tensor, normalise: bool
) -> ScoreGrads:
    """Reduce the gradient of the score over each image.

    Args:
        chunk: images of the batch.
        out: decisions and values of the forward pass.
        importance: (T,) weights of the scores or None.
        grad: (T,) float32 gradient of the score.
        normalise: flag: the scores were divided by the image's maximum.
    """
    norm = grad.new_empty(chunk.images, 2)
    scores = ScoreGrads(grad, norm, grad.new_empty(chunk.images, dtype=torch.int32))
    score_bwd_kernel[(chunk.images,)](
        *(chunk.offsets, out, importance, scores, out.p_seeds.shape[1], chunk.longest),
        NORMALISE=normalise,
        BLOCK_N=1024,
    )
    return scores
