"""Scope loop of images too large for one program: one launch per step.

Every ROUND steps the distance rows of likely seeds are computed by one product: of the tokens with
the highest priority, one of each SPAN tokens at most. A step whose seed is not among them
computes its row, with the same products and so the same bits.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.common import COUNTERS, FAR_INDEX, Images, Tokens, distance_tile, flagged, locate
from setok_triton.configs import dot_precision, tile_config
from setok_triton.scope import MaskLayout, alpha_mask, load_learnables, number_of_steps

# Steps with the same candidates, and candidates of an image.
ROUND = 16
CANDIDATES = 64
# Leading bits of a priority that the choice of candidates compares, and the bits after them.
PLACES = tl.constexpr(16)
IGNORED = tl.constexpr(2 ** (31 - 16) - 1)
# Tokens of which only the one with the highest priority may be a candidate.
SPAN = tl.constexpr(32)


@triton.jit
def combine(highest_a, token_a, left_a, highest_b, token_b, left_b):
    """Combine the maximum, its token (ties lowest index) and the sum of two parts."""
    m_a = (highest_a > highest_b) | ((highest_a == highest_b) & (token_a < token_b))
    token = tl.where(m_a, token_a, token_b)
    return tl.maximum(highest_a, highest_b), token, left_a + left_b


@triton.jit
def store_partials(loop, i_slot, b_scope, b_s, m_eligible, b_mask, o_n):
    """Write the partial results of a block: maximum priorities, their tokens, and sums.

    A warp has the tokens of a span. `i_slot` is the index of the block among those of all steps and
    images.
    """
    SPANS: tl.constexpr = o_n.shape[0] // SPAN
    b_n = tl.reshape(o_n, (SPANS, SPAN))
    b_priority = tl.reshape(tl.where(m_eligible, b_scope * b_s, -1.0), (SPANS, SPAN))
    b_left = tl.reshape(b_scope, (SPANS, SPAN))
    b_highest, b_token, b_left = tl.reduce((b_priority, b_n, b_left), 1, combine)
    # Stored by the warp that has them; vectors of the spans would be exchanged first.
    o_lane = tl.arange(0, SPAN)[None, :]
    o_span = i_slot * SPANS + tl.arange(0, SPANS)[:, None] + o_lane * 0
    m_span = tl.broadcast_to(o_lane == 0, b_n.shape)
    tl.store(loop.p_priority + o_span, tl.broadcast_to(b_highest[:, None], b_n.shape), mask=m_span)
    tl.store(loop.p_token + o_span, tl.broadcast_to(b_token[:, None], b_n.shape), mask=m_span)
    tl.store(loop.p_left + o_span, tl.broadcast_to(b_left[:, None], b_n.shape), mask=m_span)
    if loop.p_mass is not None:
        b_mass = tl.sum(tl.reshape(b_mask, (SPANS, SPAN)), axis=1)[:, None]
        tl.store(loop.p_mass + o_span, tl.broadcast_to(b_mass, b_n.shape), mask=m_span)


class Loop(NamedTuple):
    """Buffers that carry the loop from one step to the next."""

    p_scope: Tensor  # (2, T) float32 scope before and after a step, alternating
    p_eligible: Tensor  # (T,) int8
    p_priority: Tensor  # (C + 2, B, spans) float32 maximum scope * score, -1 for none
    p_token: Tensor  # (C + 2, B, spans) int32 its token, ties lowest index
    p_left: Tensor  # (C + 2, B, spans) float32 sums of the scope
    p_mass: Tensor | None  # (C + 2, B, spans) float32 sums of the mask, if they matter
    p_state: Tensor  # (C + 2, B, 3) int32: active flag, count, current half of p_scope
    p_candidate: Tensor  # (B, CANDIDATES) int32 tokens with a row in p_row, -1 for none
    p_row: Tensor  # (B, CANDIDATES + 1, L) float32 squared distances; last that of a seed without


@triton.jit(do_not_specialize=COUNTERS)
def candidates_fwd_kernel(
    loop,
    p_seeds,  # (B, C) int64
    step,  # first step of the round
    C,
    size,  # spans of an image
    stride_seeds,
    REPLAY: tl.constexpr,  # seeds are inputs
    CANDIDATES: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK_P: tl.constexpr,  # at least the spans of an image
):
    """Choose the candidates of a round for one image; in a replay they are its seeds.

    Candidates are those of all spans whose priorities exceed a threshold: the largest number that
    more than CANDIDATES priorities reach, found bit by bit down to the last of PLACES.
    """
    i_b, B = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    p_out = loop.p_candidate + i_b * CANDIDATES
    if REPLAY:
        o_c = tl.arange(0, CANDIDATES)
        m_c = (o_c < ROUND) & (step + o_c < C)
        b_seed = tl.load(p_seeds + i_b * stride_seeds + step + o_c, mask=m_c, other=-1)
        tl.store(p_out + o_c, b_seed.to(tl.int32))
    else:
        i_last = step.to(tl.int64) * B + i_b
        going = tl.load(loop.p_state + i_last * 3) != 0
        o_p = tl.arange(0, BLOCK_P)
        m_p = o_p < tl.where(going, size, 0)
        o_last = i_last * size + o_p
        # Bits of non-negative floats order like the floats; negative ones are no candidates.
        b_bits = tl.load(loop.p_priority + o_last, mask=m_p, other=-1.0)  # (P,)
        b_bits = b_bits.to(tl.int32, bitcast=True)
        b_token = tl.load(loop.p_token + o_last, mask=m_p, other=-1)  # (P,)
        bound = tl.where(tl.sum((b_bits >= 0).to(tl.int32), axis=0) > CANDIDATES, 0, -1)
        for i in range(PLACES):
            trial = tl.maximum(bound, 0) | (1 << (30 - i))
            reached = tl.sum((b_bits >= trial).to(tl.int32), axis=0)
            bound = tl.where(reached > CANDIDATES, trial, bound)
        # Those that share the leading bits of the bound are left out, as there are too many.
        bound = tl.where(bound < 0, bound, bound | IGNORED)
        m_above = b_bits > bound
        b_one = m_above.to(tl.int32)
        tl.store(p_out + tl.cumsum(b_one, axis=0) - b_one, b_token, mask=m_above)
        o_c = tl.arange(0, CANDIDATES)
        tl.store(
            p_out + o_c, tl.full((CANDIDATES,), -1, tl.int32), mask=o_c >= tl.sum(b_one, axis=0)
        )


@triton.jit(do_not_specialize=COUNTERS)
def candidate_rows_fwd_kernel(
    x,
    images,  # with norms
    loop,
    L,
    CANDIDATES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the squared distances from BLOCK_M candidates to BLOCK_N tokens."""
    blocks = tl.cdiv(L, BLOCK_N)
    at = locate(images.p_offsets, L, CANDIDATES // BLOCK_M * blocks)
    o_c = at.i_block // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = at.i_block % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    b_token = tl.load(loop.p_candidate + at.i_b * CANDIDATES + o_c)  # (M,)
    if tl.max(b_token, axis=0) >= 0:
        o_m = tl.where(b_token >= 0, b_token, FAR_INDEX)
        factor = tl.load(images.p_factor + at.i_b)
        b_d = distance_tile(x, images, at, o_m, o_n, factor, L, PRECISION, BLOCK_D)  # (M, N)
        p_tile = loop.p_row + (at.i_b * (CANDIDATES + 1) + o_c)[:, None] * L + o_n[None, :]
        tl.store(p_tile, b_d, mask=(b_token >= 0)[:, None] & (o_n < at.n)[None, :])


@triton.jit
def slot_of(b_low, b_high, seed):
    """Return the slot of the seed among the candidates (two halves), -1 if it is none.

    A half has no more entries than a warp has lanes, so every warp has all of them.
    """
    o_c = tl.arange(0, b_low.shape[0])
    low = tl.max(tl.where(b_low == seed, o_c, -1), axis=0)
    return tl.maximum(low, tl.max(tl.where(b_high == seed, o_c + b_low.shape[0], -1), axis=0))


@triton.jit
def seed_row(
    x, images, at, p_rows, seed, slot, o_n, factor, L, CANDIDATES, PRECISION, BLOCK_M, BLOCK_D
):
    """Return the squared distances (N,) to the seed: loaded, or computed if it has no row."""
    if slot < 0:
        o_m, slot = tl.arange(0, BLOCK_M), slot + CANDIDATES + 1
        o_seed = tl.where(o_m == 0, seed, FAR_INDEX)
        b_d = distance_tile(x, images, at, o_seed, o_n, factor, L, PRECISION, BLOCK_D)  # (M, N)
        # Through memory: the row of a tile would give each lane a quarter of the tokens.
        p_tile = p_rows + slot * L + o_n[None, :] + (o_m * 0)[:, None]
        tl.store(p_tile, b_d, mask=(o_m == 0)[:, None] & (o_n < at.n)[None, :])
        tl.debug_barrier()
    return tl.load(p_rows + slot * L + o_n, mask=o_n < at.n, other=0.0)  # (N,)


@triton.jit(do_not_specialize=COUNTERS)
def scope_step_fwd_kernel(
    x,
    images,  # with norms
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
    WEIGHED: tl.constexpr,  # min_mass is positive, and not EXACT
    CANDIDATES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,  # at least the spans of an image
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
    SPANS: tl.constexpr = BLOCK_N // SPAN
    i_slot = i_now * blocks + i_n
    p_now = loop.p_state + i_now * 3
    if step < 0:
        b_scope = m_ok.to(tl.float32)
        tl.store(loop.p_scope + start + o_n, b_scope, mask=m_n)
        tl.store(loop.p_eligible + start + o_n, m_ok.to(tl.int8), mask=m_n)
        store_partials(loop, i_slot, b_scope, b_s, m_ok, tl.zeros_like(b_scope), o_n)
        if i_n == 0:
            tl.store(p_now, (tl.load(images.p_num_ok + i_b) > 0).to(tl.int32))
            tl.store(p_now + 1, 0)
            tl.store(p_now + 2, 0)
            if not REPLAY:
                # The loop only writes the seeds that it finds.
                for i_c in range(0, C, BLOCK_N):
                    o_c = i_c + tl.arange(0, BLOCK_N)
                    b_none = tl.full((BLOCK_N,), -1, tl.int64)
                    tl.store(p_seeds + i_b * stride_seeds + o_c, b_none, mask=o_c < C)
    else:
        p_last = loop.p_state + i_last * 3
        going = tl.load(p_last) != 0
        count = tl.load(p_last + 1)
        half = tl.load(p_last + 2)
        HALF: tl.constexpr = CANDIDATES // 2
        p_candidate = loop.p_candidate + i_b * CANDIDATES + tl.arange(0, HALF)
        b_low, b_high = tl.load(p_candidate), tl.load(p_candidate + HALF)  # (C / 2,) each
        seed = 0
        if REPLAY:
            p_seed = p_seeds + i_b * stride_seeds + step
            seed = tl.load(p_seed, mask=step < C, other=-1).to(tl.int32)
            going = seed >= 0
            b_scope = tl.load(loop.p_scope + half * T + start + o_n, mask=m_n, other=0.0)  # (N,)
        else:
            o_p = tl.arange(0, BLOCK_P)
            m_p = o_p < blocks * SPANS
            o_last = i_last * blocks * SPANS + o_p
            # (P,) maximum priority of each span, its token, and the sum of the scope
            b_highest = tl.load(loop.p_priority + o_last, mask=m_p, other=-1.0)
            b_token = tl.load(loop.p_token + o_last, mask=m_p, other=FAR_INDEX)
            b_left = tl.load(loop.p_left + o_last, mask=m_p, other=0.0)
            if WEIGHED:
                mass = tl.sum(tl.load(loop.p_mass + o_last, mask=m_p, other=0.0), axis=0)
                light = (step > 0) & (mass < min_mass)
                # The seed of the previous step was provisional until its mass was known.
                if going & (i_n == 0) & light:
                    tl.store(p_seeds + i_b * stride_seeds + step - 1, -1)
                going = going & ~light
            moved = (going & (step > 0)).to(tl.int32)
            count += moved
            half = tl.where(moved != 0, 1 - half, half)
            # Loaded before the reduction, which then hides the latency.
            b_scope = tl.load(loop.p_scope + half * T + start + o_n, mask=m_n, other=0.0)  # (N,)
            highest, seed, left = tl.reduce((b_highest, b_token, b_left), 0, combine)
            if not EXACT:
                part = tl.maximum(tl.load(images.p_num_ok + i_b), 1).to(tl.float32)
                going = going & ((step == 0) | (tl.div_rn(left, part) > stop_residual))
            going = going & (highest >= 0)
        going = going & (step < number_of_steps(p_budget, i_b, C))
        if i_n == 0:
            tl.store(p_now, going.to(tl.int32))
            tl.store(p_now + 1, count)
            tl.store(p_now + 2, tl.where(going & REPLAY, 1 - half, half))
        if going:
            factor = tl.load(images.p_factor + i_b)
            p_rows = loop.p_row + i_b * (CANDIDATES + 1) * L
            b_d = seed_row(
                *(x, images, at, p_rows, seed, slot_of(b_low, b_high, seed), o_n, factor, L),
                *(CANDIDATES, PRECISION, BLOCK_M, BLOCK_D),
            )
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
                store_partials(loop, i_slot, b_scope, b_s, m_eligible, b_mask, o_n)
        elif not REPLAY:
            # The next step reads the partial results whether this one ran or not.
            b_none = tl.zeros((BLOCK_N,), dtype=tl.float32)
            store_partials(loop, i_slot, b_none, b_s, b_none > 0, b_none, o_n)


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
    norm: Tensor,
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

    `norm` (T,) are the squared norms of the tokens in range, `left` (T,) receives the final scope;
    the other arguments are those of `image.cluster_images`.
    """
    config, layout = tile_config(x.dtype), MaskLayout.of(masks)
    block, total, steps = config.block_n, x.shape[0], loop.max_clusters
    images, longest = chunk.images, chunk.longest
    blocks = triton.cdiv(longest, block)
    spans = blocks * (block // SPAN.value)
    weighed = loop.min_mass > 0 and not loop.exact
    carried = Loop(
        score.new_empty(2, total),
        torch.empty_like(chunk.ok),
        score.new_empty(steps + 2, images, spans),
        counts.new_empty(steps + 2, images, spans, dtype=torch.int32),
        score.new_empty(steps + 2, images, spans),
        score.new_empty(steps + 2, images, spans) if weighed else None,
        counts.new_empty(steps + 2, images, 3, dtype=torch.int32),
        counts.new_empty(images, CANDIDATES, dtype=torch.int32),
        score.new_empty(images, CANDIDATES + 1, longest),
    )
    known = Tokens.of(x), Images.of(chunk, norm)
    block_p = max(32, triton.next_power_of_2(spans))
    tiles = {"CANDIDATES": CANDIDATES, "PRECISION": dot_precision(x.dtype), **config.launch()}
    for step in range(-1, steps + 1):
        if step % ROUND == 0 and step < steps:
            candidates_fwd_kernel[(images,)](
                *(carried, seeds, step, steps, spans, seeds.stride(0)),
                REPLAY=replay,
                CANDIDATES=CANDIDATES,
                ROUND=ROUND,
                BLOCK_P=block_p,
                num_warps=max(1, min(8, block_p // 512)),
            )
            rows = CANDIDATES // config.block_m
            candidate_rows_fwd_kernel[(images * rows * blocks,)](*known, carried, longest, **tiles)
        scope_step_fwd_kernel[(images * blocks,)](
            *(*known, score, budget, options.learnable, masks, seeds, carried),
            *(step, steps, total),
            *(loop.stop_residual, loop.min_mass, longest, *layout, seeds.stride(0)),
            KERNEL=options.kernel,
            SIGMOID=options.alpha == "sigmoid",
            DISTINCT=loop.distinct_seeds,
            EXACT=loop.exact,
            REPLAY=replay,
            WEIGHED=weighed,
            BLOCK_P=block_p,
            # Without a limit the assembler spills a few registers to fit one more program.
            **tiles | {"num_warps": 4, "maxnreg": 240},
        )
    scope_end_fwd_kernel[(images * blocks,)](
        *(chunk.offsets, carried, left, counts, steps, total, longest),
        REPLAY=replay,
        BLOCK_N=block,
        num_warps=4,
    )
