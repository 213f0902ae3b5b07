"""Scope loop of images too large for one program: one launch per step, no distance rows."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.common import COUNTERS, FAR_INDEX, Images, Tokens, flagged, locate, pair_distance
from setok_triton.configs import token_config
from setok_triton.scope import MaskLayout, alpha_mask, load_learnables, number_of_steps


@triton.jit
def store_partials(p_partial, b_scope, b_s, m_eligible, b_mask, o_n):
    """Write the partial results of a block: maximum priority, its token, sums of scope and mask."""
    b_priority = tl.where(m_eligible, b_scope * b_s, -1.0)
    highest = tl.max(b_priority, axis=0)
    token = tl.min(tl.where(b_priority == highest, o_n, FAR_INDEX), axis=0)
    tl.store(p_partial, highest)
    # Indices below 2**24 are exact in float32.
    tl.store(p_partial + 1, token.to(tl.float32))
    tl.store(p_partial + 2, tl.sum(b_scope, axis=0))
    tl.store(p_partial + 3, tl.sum(b_mask, axis=0))


class Loop(NamedTuple):
    """Buffers that carry the loop from one step to the next."""

    p_scope: Tensor  # (2, T) float32 scope before and after a step, alternating
    p_eligible: Tensor  # (T,) int8
    p_partial: Tensor  # (C + 2, B, blocks, 4) float32, see `store_partials`
    p_state: Tensor  # (C + 2, B, 3) int32: active flag, count, current half of p_scope


@triton.jit(do_not_specialize=COUNTERS)
def scope_step_fwd_kernel(
    x,
    images,
    p_score,  # (T,) float32
    p_budget,  # (B,) int64 maximum number of seeds, or None for C
    p_learnable,
    p_masks,  # (C + 1, ...) rows stride_row apart
    p_seeds,  # (B, C) int64
    loop,
    step,  # -1 only initialises; C only evaluates the last step
    C,
    T,
    stop_residual,
    min_mass,
    L,
    stride_image,
    stride_row,
    stride_start,
    stride_seeds,
    KERNEL: tl.constexpr,
    SIGMOID: tl.constexpr,
    DISTINCT: tl.constexpr,
    EXACT: tl.constexpr,  # only the budget stops the loop
    REPLAY: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Run one step for one block of tokens; every program first evaluates the previous step."""
    blocks = tl.cdiv(L, BLOCK_N)
    at = locate(images.p_offsets, L, blocks)
    i_b, i_n, start, n = at
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_ok = flagged(images.p_ok, start, o_n, m_n)
    b_s = tl.load(p_score + start + o_n, mask=m_n, other=0.0)  # (N,)
    B = tl.num_programs(0) // blocks
    # Slot step + 1 belongs to this step, slot step to the previous one.
    i_now, i_last = (step + 1).to(tl.int64) * B + i_b, step.to(tl.int64) * B + i_b
    p_slot = loop.p_partial + (i_now * blocks + i_n) * 4
    p_now = loop.p_state + i_now * 3
    if step < 0:
        b_scope = m_ok.to(tl.float32)
        tl.store(loop.p_scope + start + o_n, b_scope, mask=m_n)
        tl.store(loop.p_eligible + start + o_n, m_ok.to(tl.int8), mask=m_n)
        store_partials(p_slot, b_scope, b_s, m_ok, tl.zeros_like(b_scope), o_n)
        if i_n == 0:
            tl.store(p_now, (tl.load(images.p_num_ok + i_b) > 0).to(tl.int32))
            tl.store(p_now + 1, 0)
            tl.store(p_now + 2, 0)
    else:
        o_p = tl.arange(0, BLOCK_P)
        m_p = o_p < blocks
        p_before = loop.p_partial + (i_last * blocks + o_p) * 4
        p_last = loop.p_state + i_last * 3
        going = tl.load(p_last) != 0
        count = tl.load(p_last + 1)
        half = tl.load(p_last + 2)
        seed = 0
        if REPLAY:
            p_seed = p_seeds + i_b * stride_seeds + step
            seed = tl.load(p_seed, mask=step < C, other=-1).to(tl.int32)
            going = seed >= 0
        else:
            # Steps that did not run have no partial results.
            m_p = m_p & (o_p < tl.where(going, blocks, 0))
            # (P,) maximum priority of each block, and its token
            b_highest = tl.load(p_before, mask=m_p, other=-1.0)
            b_token = tl.load(p_before + 1, mask=m_p, other=0.0).to(tl.int32)
            highest = tl.max(b_highest, axis=0)
            seed = tl.min(tl.where(m_p & (b_highest == highest), b_token, FAR_INDEX), axis=0)
            if EXACT:
                if step > 0:
                    count += going.to(tl.int32)
                    half = tl.where(going, 1 - half, half)
            elif step > 0:
                mass = tl.sum(tl.load(p_before + 3, mask=m_p, other=0.0), axis=0)
                left = tl.sum(tl.load(p_before + 2, mask=m_p, other=0.0), axis=0)
                appended = going & (mass >= min_mass)
                part = tl.maximum(tl.load(images.p_num_ok + i_b), 1).to(tl.float32)
                # The seed of the previous step was provisional until its mass was known.
                if going & (i_n == 0) & (mass < min_mass):
                    tl.store(p_seeds + i_b * stride_seeds + step - 1, -1)
                count += appended.to(tl.int32)
                half = tl.where(appended, 1 - half, half)
                going = appended & (tl.div_rn(left, part) > stop_residual)
            going = going & (highest >= 0)
        going = going & (step < number_of_steps(p_budget, i_b, C))
        if i_n == 0:
            tl.store(p_now, going.to(tl.int32))
            tl.store(p_now + 1, count)
            tl.store(p_now + 2, tl.where(going & REPLAY, 1 - half, half))
        if going:
            b_scope = tl.load(loop.p_scope + half * T + start + o_n, mask=m_n, other=0.0)  # (N,)
            b_seed = tl.zeros((BLOCK_N,), dtype=tl.int32) + seed
            factor = tl.load(images.p_factor + i_b)
            b_d = pair_distance(x, images, at, b_seed, o_n, m_ok, factor, L, BLOCK_D)
            b_d = tl.load(images.p_sigma + i_b) * b_d
            b_alpha = tl.where(
                m_ok, alpha_mask(b_d, b_s, load_learnables(p_learnable), KERNEL, SIGMOID), 0.0
            )
            b_mask = b_scope * b_alpha
            p_row = p_masks + i_b * stride_image + start * stride_start
            tl.store(p_row + step.to(tl.int64) * stride_row + o_n, b_mask, mask=m_n)
            b_scope = b_scope * (1.0 - b_alpha)
            tl.store(loop.p_scope + (1 - half) * T + start + o_n, b_scope, mask=m_n)
            m_eligible = tl.load(loop.p_eligible + start + o_n, mask=m_n, other=0) != 0
            if DISTINCT:
                m_eligible = m_eligible & (o_n != seed)
                # Several warps hold the same token: all must load before any stores.
                tl.debug_barrier()
                tl.store(loop.p_eligible + start + o_n, m_eligible.to(tl.int8), mask=m_n)
            if not REPLAY:
                if i_n == 0:
                    tl.store(p_seeds + i_b * stride_seeds + step, seed.to(tl.int64))
                store_partials(p_slot, b_scope, b_s, m_eligible, b_mask, o_n)


@triton.jit(do_not_specialize=COUNTERS)
def scope_end_fwd_kernel(
    p_offsets,
    loop,
    p_left,  # (T,) float32
    p_counts,  # (B,) int64
    C,
    T,
    L,
    REPLAY: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write the current half of the scope, and the counts."""
    blocks = tl.cdiv(L, BLOCK_N)
    i_b, i_n, start, n = locate(p_offsets, L, blocks)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # State after the last step.
    B = tl.num_programs(0) // blocks
    p_state = loop.p_state + ((C + 1).to(tl.int64) * B + i_b) * 3
    half = tl.load(p_state + 2)
    b_scope = tl.load(loop.p_scope + half * T + start + o_n, mask=o_n < n, other=0.0)  # (N,)
    tl.store(p_left + start + o_n, b_scope, mask=o_n < n)
    if (not REPLAY) & (i_n == 0):
        tl.store(p_counts + i_b, tl.load(p_state + 1).to(tl.int64))


def stream_scope(
    x: Tensor,
    chunk: Chunk,
    score: Tensor,
    budget: Tensor | None,
    options,
    loop,
    masks: Tensor,
    left: Tensor,
    seeds: Tensor,
    counts: Tensor,
    replay: bool,
) -> None:
    """Run the loop of all images step by step.

    `left` (T,) receives the final scope; the other arguments are those of `image.cluster_images`.
    """
    launch, layout = token_config(x.dtype), MaskLayout.of(masks)
    block, total, steps = 8 * launch.block_n, x.shape[0], loop.max_clusters
    blocks = triton.cdiv(chunk.longest, block)
    carried = Loop(
        score.new_empty(2, total),
        torch.empty_like(chunk.ok),
        score.new_empty(steps + 2, chunk.images, blocks, 4),
        counts.new_empty(steps + 2, chunk.images, 3, dtype=torch.int32),
    )
    tokens, images = Tokens.of(x), Images.of(chunk)
    for step in range(-1, steps + 1):
        scope_step_fwd_kernel[(chunk.images * blocks,)](
            *(tokens, images, score, budget, options.learnable, masks, seeds, carried),
            *(step, steps, total),
            *(loop.stop_residual, loop.min_mass, chunk.longest, *layout, seeds.stride(0)),
            KERNEL=options.kernel,
            SIGMOID=options.alpha == "sigmoid",
            DISTINCT=loop.distinct_seeds,
            EXACT=loop.exact,
            REPLAY=replay,
            BLOCK_N=block,
            BLOCK_D=launch.block_d // 8,
            BLOCK_P=triton.next_power_of_2(blocks),
            num_warps=2 * launch.num_warps,
        )
    scope_end_fwd_kernel[(chunk.images * blocks,)](
        *(chunk.offsets, carried, left, counts, steps, total, chunk.longest),
        REPLAY=replay,
        BLOCK_N=block,
        num_warps=4,
    )
