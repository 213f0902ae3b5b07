"""The scope loop of images too large for one program: a launch per step, no rows kept."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.common import FAR_INDEX, locate, pair_distance
from setok_triton.configs import token_config
from setok_triton.scope import MaskLayout, alpha_mask


@triton.jit
def store_partials(p_partial, b_scope, b_s, m_eligible, b_mask, o_n):
    """What the next step needs of a block: highest priority, its token, sums of scope and mask."""
    b_priority = tl.where(m_eligible, b_scope * b_s, -1.0)
    highest = tl.max(b_priority, axis=0)
    token = tl.min(tl.where(b_priority == highest, o_n, FAR_INDEX), axis=0)
    tl.store(p_partial, highest)
    # Indices below 2**24 are exact in float32.
    tl.store(p_partial + 1, token.to(tl.float32))
    tl.store(p_partial + 2, tl.sum(b_scope, axis=0))
    tl.store(p_partial + 3, tl.sum(b_mask, axis=0))


@triton.jit(do_not_specialize=["D", "C", "T", "step", "L"])
def scope_step_fwd_kernel(
    p_x,
    p_offsets,
    p_ok,
    p_score,
    p_factor,
    p_sigma,
    p_taking_part,
    p_learnable,
    p_masks,
    p_scope,  # (2, T): before and after each step in turns
    p_eligible,  # (T,) int8
    p_partial,  # (C + 2, B, blocks, 4) float32
    p_state,  # (C + 2, B, 3) int32: going, count, which half of p_scope is current
    p_seeds,
    D,
    step,  # -1 only prepares; C only concludes
    C,
    T,
    stop_residual,
    min_mass,
    L,
    blocks_per_image,
    stride_n,
    stride_d,
    stride_image,
    stride_row,
    stride_start,
    stride_seeds,
    KERNEL: tl.constexpr,
    SIGMOID: tl.constexpr,
    DISTINCT: tl.constexpr,
    REPLAY: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One step for one block of tokens; every program concludes the step before from its sums."""
    i_b, i_n, start, n = locate(p_offsets, L, blocks_per_image)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_ok = m_n & (tl.load(p_ok + start + o_n, mask=m_n, other=0) != 0)
    b_s = tl.load(p_score + start + o_n, mask=m_n, other=0.0)
    images = tl.num_programs(0) // blocks_per_image
    # Slot step + 1 belongs to this step, slot step to the one before.
    p_slot = p_partial + ((step + 1).to(tl.int64) * images + i_b) * blocks_per_image * 4 + i_n * 4
    p_now = p_state + ((step + 1).to(tl.int64) * images + i_b) * 3
    if step < 0:
        b_scope = m_ok.to(tl.float32)
        tl.store(p_scope + start + o_n, b_scope, mask=m_n)
        tl.store(p_eligible + start + o_n, m_ok.to(tl.int8), mask=m_n)
        store_partials(p_slot, b_scope, b_s, m_ok, tl.zeros_like(b_scope), o_n)
        if i_n == 0:
            tl.store(p_now, (tl.load(p_taking_part + i_b) > 0).to(tl.int32))
            tl.store(p_now + 1, 0)
            tl.store(p_now + 2, 0)
    else:
        o_p = tl.arange(0, BLOCK_P)
        m_p = o_p < blocks_per_image
        p_before = p_partial + (step.to(tl.int64) * images + i_b) * blocks_per_image * 4 + o_p * 4
        p_last = p_state + (step.to(tl.int64) * images + i_b) * 3
        going = tl.load(p_last) != 0
        count = tl.load(p_last + 1)
        half = tl.load(p_last + 2)
        seed = 0
        if REPLAY:
            seed = tl.load(p_seeds + i_b * stride_seeds + step, mask=step < C, other=-1).to(
                tl.int32
            )
            going = seed >= 0
        else:
            # Steps that did not take place have left no sums.
            m_p = m_p & (o_p < tl.where(going, blocks_per_image, 0))
            b_highest = tl.load(p_before, mask=m_p, other=-1.0)
            b_token = tl.load(p_before + 1, mask=m_p, other=0.0).to(tl.int32)
            highest = tl.max(b_highest, axis=0)
            seed = tl.min(tl.where(m_p & (b_highest == highest), b_token, FAR_INDEX), axis=0)
            if step > 0:
                mass = tl.sum(tl.load(p_before + 3, mask=m_p, other=0.0), axis=0)
                left = tl.sum(tl.load(p_before + 2, mask=m_p, other=0.0), axis=0)
                appended = going & (mass >= min_mass)
                part = tl.maximum(tl.load(p_taking_part + i_b), 1).to(tl.float32)
                # The seed of the step before was a guess until its mass was known.
                if going & (i_n == 0) & (mass < min_mass):
                    tl.store(p_seeds + i_b * stride_seeds + step - 1, -1)
                count += appended.to(tl.int32)
                half = tl.where(appended, 1 - half, half)
                going = appended & (tl.div_rn(left, part) > stop_residual)
            going = going & (highest >= 0)
        going = going & (step < C)
        if i_n == 0:
            tl.store(p_now, going.to(tl.int32))
            tl.store(p_now + 1, count)
            tl.store(p_now + 2, tl.where(going & REPLAY, 1 - half, half))
        if going:
            b_scope = tl.load(p_scope + half * T + start + o_n, mask=m_n, other=0.0)
            b_d = pair_distance(
                p_x,
                p_x,
                start,
                i_b,
                tl.zeros((BLOCK_N,), dtype=tl.int32) + seed,
                o_n,
                m_ok,
                tl.load(p_factor + i_b),
                D,
                0,
                stride_n,
                stride_d,
                False,
                BLOCK_D,
            )
            b_d = tl.load(p_sigma + i_b) * b_d
            b_alpha = tl.where(m_ok, alpha_mask(b_d, b_s, p_learnable, KERNEL, SIGMOID), 0.0)
            b_mask = b_scope * b_alpha
            p_row = p_masks + i_b * stride_image + start * stride_start
            tl.store(p_row + step.to(tl.int64) * stride_row + o_n, b_mask, mask=m_n)
            b_scope = b_scope * (1.0 - b_alpha)
            tl.store(p_scope + (1 - half) * T + start + o_n, b_scope, mask=m_n)
            m_eligible = tl.load(p_eligible + start + o_n, mask=m_n, other=0) != 0
            if DISTINCT:
                m_eligible = m_eligible & (o_n != seed)
                # Several warps hold a token: none may store before all have read.
                tl.debug_barrier()
                tl.store(p_eligible + start + o_n, m_eligible.to(tl.int8), mask=m_n)
            if not REPLAY:
                if i_n == 0:
                    tl.store(p_seeds + i_b * stride_seeds + step, seed.to(tl.int64))
                store_partials(p_slot, b_scope, b_s, m_eligible, b_mask, o_n)


@triton.jit(do_not_specialize=["L"])
def scope_end_fwd_kernel(
    p_offsets,
    p_scope,
    p_state,  # (B, 3) after the last step
    p_left,
    p_counts,
    T,
    L,
    blocks_per_image,
    REPLAY: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The current half of the scope, and the counts."""
    i_b, i_n, start, n = locate(p_offsets, L, blocks_per_image)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    half = tl.load(p_state + i_b * 3 + 2)
    b_scope = tl.load(p_scope + half * T + start + o_n, mask=o_n < n, other=0.0)
    tl.store(p_left + start + o_n, b_scope, mask=o_n < n)
    if (not REPLAY) & (i_n == 0):
        tl.store(p_counts + i_b, tl.load(p_state + i_b * 3 + 1).to(tl.int64))


def stream_scope(
    x: Tensor,
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
    """Runs the loop of all images step by step.

    `left` (T,) is written, the scope in the end; the other arguments are those of
    `image.cluster_images`.
    """
    launch, layout = token_config(x.dtype), MaskLayout.of(masks)
    block, total, steps = 8 * launch.block_n, x.shape[0], loop.max_clusters
    blocks = triton.cdiv(chunk.longest, block)
    halves = score.new_empty(2, total)
    eligible = torch.empty_like(chunk.ok)
    partial = score.new_empty(steps + 2, chunk.images, blocks, 4)
    state = counts.new_empty(steps + 2, chunk.images, 3, dtype=torch.int32)
    for step in range(-1, steps + 1):
        scope_step_fwd_kernel[(chunk.images * blocks,)](
            x,
            chunk.offsets,
            chunk.ok,
            score,
            chunk.factor,
            chunk.sigma,
            chunk.taking_part,
            options.learnable,
            masks,
            halves,
            eligible,
            partial,
            state,
            seeds,
            x.shape[1],
            step,
            steps,
            total,
            loop.stop_residual,
            loop.min_mass,
            chunk.longest,
            blocks,
            *x.stride(),
            layout.image,
            layout.row,
            layout.start,
            seeds.stride(0),
            KERNEL=options.kernel,
            SIGMOID=options.alpha == "sigmoid",
            DISTINCT=loop.distinct_seeds,
            REPLAY=replay,
            BLOCK_N=block,
            BLOCK_D=launch.block_d // 8,
            BLOCK_P=triton.next_power_of_2(blocks),
            num_warps=2 * launch.num_warps,
        )
    scope_end_fwd_kernel[(chunk.images * blocks,)](
        chunk.offsets,
        halves,
        state[-1],
        left,
        counts,
        total,
        chunk.longest,
        blocks,
        REPLAY=replay,
        BLOCK_N=block,
        num_warps=4,
    )
