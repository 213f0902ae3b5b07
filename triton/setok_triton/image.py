"""Kernel of parents, seed scores, masks and labels, with one program per image.

The steps from densities to labels reduce over all tokens of an image: for the parents, for the
maximum score, and once per step for the next seed. One program per image keeps all vectors over
tokens (scope, score, best mask and its row) in registers.
"""

import triton
import triton.language as tl
from torch import Tensor

from setok_kernels import _cuda_kernels
from setok_triton import cuda_image
from setok_triton.chunk import Chunk
from setok_triton.common import (
    COUNTERS,
    FAR_INDEX,
    Clusters,
    Images,
    flagged,
    locate,
    row_pitch,
)
from setok_triton.configs import host_pitch, image_config
from setok_triton.importance import weighted_score
from setok_triton.parents import listed_parents, precedes
from setok_triton.scope import LARGEST, MaskLayout, alpha_mask, load_learnables, number_of_steps


@triton.jit
def scan_peaks(p_peaks, p_rows, at, out, p_target, m_peak, o_n, L, REPLAY, BLOCK_P, BLOCK_T):
    """Find the parents of local peaks in their whole rows; the top token takes the maximum.

    Writes unscaled distances into `out.p_delta`, their tokens into `p_target`, and parents unless
    REPLAY. `p_peaks` is scratch for the indices of the peaks.
    """
    p_density, n = out.p_density + at.start, at.n
    b_one = m_peak.to(tl.int32)
    peaks = tl.sum(b_one, axis=0)
    tl.store(p_peaks + tl.cumsum(b_one, axis=0) - b_one, o_n, mask=m_peak)
    # Other warps read the stored indices.
    tl.debug_barrier()
    for i_p in range(0, peaks, BLOCK_P):
        o_p = i_p + tl.arange(0, BLOCK_P)
        b_i = tl.load(p_peaks + o_p, mask=o_p < peaks, other=0)  # (P,)
        b_own = tl.load(p_density + b_i)  # (P,)
        b_best = tl.full((BLOCK_P, BLOCK_T), float("inf"), dtype=tl.float32)
        b_first = tl.full((BLOCK_P, BLOCK_T), FAR_INDEX, dtype=tl.int32)
        b_far = tl.full((BLOCK_P, BLOCK_T), -1.0, dtype=tl.float32)
        b_last = tl.full((BLOCK_P, BLOCK_T), FAR_INDEX, dtype=tl.int32)
        for i_t in range(0, n, BLOCK_T):
            o_t = (i_t + tl.arange(0, BLOCK_T))[None, :]
            p_row = p_rows + (b_i.to(tl.int64) * row_pitch(L))[:, None] + o_t
            b_d = tl.load(p_row, mask=o_t < n, other=float("inf"))  # (P, T)
            m_farther = (b_d < float("inf")) & (b_d > b_far)
            b_last = tl.where(m_farther, o_t, b_last)
            b_far = tl.where(m_farther, b_d, b_far)
            if not REPLAY:
                b_other = tl.load(p_density + o_t, mask=o_t < n, other=0.0)  # (1, T)
                m_nearer = precedes(b_other, o_t, b_own[:, None], b_i[:, None]) & (b_d < b_best)
                b_first = tl.where(m_nearer, o_t, b_first)
                b_best = tl.where(m_nearer, b_d, b_best)
        b_delta = tl.max(b_far, axis=1)  # (P,), not negative because a peak is at 0 from itself
        b_target = tl.min(tl.where(b_far == b_delta[:, None], b_last, FAR_INDEX), axis=1)
        if not REPLAY:
            b_min = tl.min(b_best, axis=1)
            b_parent = tl.min(tl.where(b_best == b_min[:, None], b_first, FAR_INDEX), axis=1)
            b_delta = tl.where(b_min < float("inf"), b_min, b_delta)
            b_target = tl.where(b_min < float("inf"), b_parent, b_target)
            b_parent = tl.where(b_min < float("inf"), b_parent, -1)
            tl.store(out.p_parent + at.start + b_i, b_parent.to(tl.int64), mask=o_p < peaks)
        tl.store(p_target + at.start + b_i, b_target, mask=o_p < peaks)
        tl.store(out.p_delta + at.start + b_i, b_delta, mask=o_p < peaks)
    tl.debug_barrier()


@triton.jit
def seed_scores(b_raw, o_n, top, NORMALISE, REPLAY):
    """Return the scores divided by the image's maximum; in a replay by that of token `top`."""
    if NORMALISE:
        largest = tl.max(b_raw, axis=0)
        if REPLAY:
            largest = tl.where(top >= 0, tl.sum(tl.where(o_n == top, b_raw, 0.0), axis=0), largest)
        # A subnormal maximum counts as 0: its reciprocal is not finite. Exact division, so that the
        # maximum becomes exactly 1.
        b_raw = tl.div_rn(b_raw, tl.where(largest >= 1.1754943508222875e-38, largest, 1.0))
    return b_raw


@triton.jit
def by_warp(b, WARPS):
    """Reshape (N,) to (turns, WARPS, lanes), so that each warp holds one column."""
    LANES: tl.constexpr = min(32, b.shape[0] // WARPS)
    return tl.reshape(b, (b.shape[0] // WARPS // LANES, WARPS, LANES))


@triton.jit
def largest_products(b_scope, b_s, b_eligible, o_n, WARPS):
    """Return (WARPS,) keys of the maximum scope * score and its index, ties lowest index.

    A key is negative if no token is eligible.
    """
    # Products are non-negative, so their bits order like the floats.
    b_bits = by_warp(tl.where(b_eligible, (b_scope * b_s).to(tl.int32, bitcast=True), -1), WARPS)
    b_max = tl.max(tl.max(b_bits, axis=0), axis=1)
    b_index = tl.where(b_bits == b_max[None, :, None], by_warp(o_n, WARPS), FAR_INDEX)
    b_first = tl.min(tl.min(b_index, axis=0), axis=1)
    return (b_max.to(tl.int64) << 32) | (FAR_INDEX - b_first)


@triton.jit
def sums_by_warp(b, WARPS):
    """Return the sums (WARPS,) of each warp's values."""
    return tl.sum(tl.sum(by_warp(b, WARPS), axis=0), axis=1)


@triton.jit
def two_largest(first_a, second_a, first_b, second_b):
    """Return the two largest of two sorted pairs, the larger first."""
    lesser = tl.minimum(first_a, first_b)
    return tl.maximum(first_a, first_b), tl.maximum(lesser, tl.maximum(second_a, second_b))


@triton.jit
def combine(first_a, second_a, left_a, first_b, second_b, left_b):
    """Combine the reductions of a step, for a single exchange between the warps."""
    first, second = two_largest(first_a, second_a, first_b, second_b)
    return first, second, left_a + left_b


@triton.jit
def combine_weighed(first_a, second_a, left_a, mass_a, first_b, second_b, left_b, mass_b):
    """Combine the reductions of a step, including the mass of the mask."""
    first, second = two_largest(first_a, second_a, first_b, second_b)
    return first, second, left_a + left_b, mass_a + mass_b


@triton.jit
def token_of(key):
    """Return the index in a key of `largest_products`, or 0 if the key is negative."""
    return tl.where(key >= 0, FAR_INDEX - (key & FAR_INDEX).to(tl.int32), 0)


@triton.jit
def label_values(b_mask, o_n, seed, EXACT):
    """Return what the rows of a token's masks are compared by; if EXACT a seed wins its own row."""
    if EXACT:
        b_mask = tl.where(o_n == seed, float("inf"), b_mask)
    return b_mask


@triton.jit
def load_row(p_rows, token, stride_line, o_n, m_n):
    """Return the unscaled squared distances (N,) to a token."""
    return tl.load(p_rows + token.to(tl.int64) * stride_line + o_n, mask=m_n, other=0.0)


@triton.jit(do_not_specialize=COUNTERS)
def image_fwd_kernel(
    images,  # with distances
    p_valid,  # (T,) uint8 or None
    p_importance,  # (T,) weights of the scores, or None
    p_budget,  # (B,) int64 maximum number of seeds, or None for C
    p_learnable,
    out,  # Clusters
    p_target,  # (T,) int32 token of delta: the parent, without one the farthest token
    p_peaks,  # (T,) int32 scratch
    C,
    K,
    L,
    stride_line,  # row stride of the distances; unspecialised, so that lanes hold single tokens
    stop_residual,
    min_mass,
    stride_image,
    stride_row,
    stride_start,
    stride_seeds,
    KERNEL: tl.constexpr,
    SIGMOID: tl.constexpr,
    DISTINCT: tl.constexpr,
    EXACT: tl.constexpr,  # only the budget stops the loop, and labels never name the residual
    NORMALISE: tl.constexpr,
    REPLAY: tl.constexpr,  # parents, seeds and counts are inputs
    WEIGHED: tl.constexpr,  # min_mass is positive, and not EXACT
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
    WARPS: tl.constexpr,  # warps of the program, or 1 with fewer than 32 tokens per warp
):
    """Write parents, delta, score, masks (Algorithm 1), residual and labels of one image."""
    at = locate(images.p_offsets, L, 1)
    i_b, _, start, n = at
    o_n = tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_ok = flagged(images.p_ok, start, o_n, m_n)
    m_valid = flagged(p_valid, start, o_n, m_n)
    sigma = tl.load(images.p_sigma + i_b)
    p_rows = images.p_distance + i_b * L * row_pitch(L).to(tl.int64)
    p_rho = out.p_density + start
    b_rho = tl.load(p_rho + o_n, mask=m_n, other=0.0)  # (N,)

    if REPLAY:
        b_parent = tl.load(out.p_parent + start + o_n, mask=m_ok, other=-1).to(tl.int32)  # (N,)
    else:
        b_parent = listed_parents(out.p_knn + start * K, p_rho, b_rho, o_n, m_ok, K)
        m_known = m_n & ~(m_ok & (b_parent < 0))
        tl.store(out.p_parent + start + o_n, b_parent.to(tl.int64), mask=m_known)
    m_listed = m_ok & (b_parent >= 0)
    # (N,) unscaled distances to the parents found so far
    b_delta = tl.load(p_rows + o_n.to(tl.int64) * stride_line + b_parent, mask=m_listed, other=0.0)
    m_peak = m_ok & (b_parent < 0)
    # Excluded tokens have no target.
    tl.store(p_target + start + o_n, b_parent, mask=m_n & ~m_peak)
    p_scratch = p_peaks + start
    scan_peaks(p_scratch, p_rows, at, out, p_target, m_peak, o_n, L, REPLAY, BLOCK_P, BLOCK_T)
    p_delta = out.p_delta + start + o_n
    b_delta = tl.where(m_peak, tl.load(p_delta, mask=m_peak, other=0.0), b_delta)
    # In a small block several warps hold the same token: all must load before any stores.
    tl.debug_barrier()
    # An infinite delta at density 0 would make the score NaN.
    b_delta = tl.where(m_ok, tl.minimum(sigma * b_delta, LARGEST), 0.0)
    tl.store(p_delta, b_delta, mask=m_n)
    p_seed = out.p_seeds + i_b * stride_seeds
    top = -1
    if REPLAY:
        top = tl.load(p_seed).to(tl.int32)
    b_raw = weighted_score(b_rho * b_delta, p_importance, start, o_n, m_n)
    b_s = seed_scores(b_raw, o_n, top, NORMALISE, REPLAY)
    tl.store(out.p_score + start + o_n, b_s, mask=m_n)

    p_image = out.p_masks + i_b * stride_image + start * stride_start + o_n
    learnables = load_learnables(p_learnable)
    b_scope = m_ok.to(tl.float32)
    b_best = tl.full((BLOCK_N,), -1.0, dtype=tl.float32)
    b_label = tl.full((BLOCK_N,), 0, dtype=tl.int32)
    step = tl.zeros((), dtype=tl.int32)
    if REPLAY:
        count = tl.load(out.p_counts + i_b).to(tl.int32)
        while step < C:
            seed = tl.load(p_seed + step).to(tl.int32)
            m_seed = m_ok & (o_n < tl.where(seed >= 0, n, 0))
            b_d = sigma * load_row(p_rows, tl.maximum(seed, 0), stride_line, o_n, m_n)
            b_alpha = tl.where(m_seed, alpha_mask(b_d, b_s, learnables, KERNEL, SIGMOID), 0.0)
            b_mask = b_scope * b_alpha
            tl.store(p_image + step.to(tl.int64) * stride_row, b_mask, mask=m_n)
            # EXACT compares the rows before the residual, also those without a seed.
            m_row = o_n < tl.where((step < count) if EXACT else (seed >= 0), n, 0)
            b_value = label_values(b_mask, o_n, seed, EXACT)
            m_better = (b_value > b_best) & m_row
            b_label = tl.where(m_better, step, b_label)
            b_best = tl.where(m_better, b_value, b_best)
            b_scope = b_scope * (1.0 - b_alpha)
            step += 1
    else:
        count = tl.zeros((), dtype=tl.int32)
        m_eligible = m_ok
        num_ok = tl.maximum(tl.load(images.p_num_ok + i_b), 1).to(tl.float32)
        key = tl.max(largest_products(b_scope, b_s, m_eligible, o_n, WARPS), axis=0)
        going, seed = key >= 0, token_of(key)
        b_d = load_row(p_rows, seed, stride_line, o_n, m_n)
        guess, b_guess = seed, b_d
        # No `while`: Triton 3.7.1 fails on one that carries rows and drops them in the end.
        for _ in range(number_of_steps(p_budget, i_b, C)):
            if going:
                b_alpha = alpha_mask(sigma * b_d, b_s, learnables, KERNEL, SIGMOID)
                b_alpha = tl.where(m_ok, b_alpha, 0.0)
                b_mask = b_scope * b_alpha
                b_after = b_scope * (1.0 - b_alpha)
                if DISTINCT:
                    m_eligible = m_eligible & (o_n != seed)
                b_first = largest_products(b_after, b_s, m_eligible, o_n, WARPS)
                b_second = tl.full((WARPS,), -1, dtype=tl.int64)
                b_left = sums_by_warp(b_after, WARPS)
                good = going
                if WEIGHED:
                    b_mass = sums_by_warp(b_mask, WARPS)
                    key, second, left, mass = tl.reduce(
                        (b_first, b_second, b_left, b_mass), 0, combine_weighed
                    )
                    # A cluster below min_mass is not appended; the residual takes its row.
                    good = mass >= min_mass
                else:
                    key, second, left = tl.reduce((b_first, b_second, b_left), 0, combine)
                # The second largest is mostly the seed of the step after next: prefetch its row.
                following = token_of(key)
                if following == guess:
                    b_d = b_guess
                else:
                    b_d = load_row(p_rows, following, stride_line, o_n, m_n)
                guess = token_of(second)
                b_guess = load_row(p_rows, guess, stride_line, o_n, m_n)
                tl.store(p_image + step.to(tl.int64) * stride_row, b_mask, mask=m_n)
                tl.store(p_seed + step, seed.to(tl.int64), mask=good)
                b_value = label_values(b_mask, o_n, seed, EXACT)
                m_better = (b_value > b_best) & (o_n < tl.where(good, n, 0))
                b_label = tl.where(m_better, step, b_label)
                b_best = tl.where(m_better, b_value, b_best)
                b_scope = tl.where(good, b_after, b_scope)
                count += good.to(tl.int32)
                step += 1
                seed = following
                going = good & (key >= 0)
                if not EXACT:
                    going = going & (tl.div_rn(left, num_ok) > stop_residual)
        tl.store(out.p_counts + i_b, count.to(tl.int64))

    # A valid token with a non-finite feature is all residual.
    b_residual = tl.where(m_ok, b_scope, m_valid.to(tl.float32))
    tl.store(p_image + count.to(tl.int64) * stride_row, b_residual, mask=m_n)
    m_residual = b_residual > b_best
    if EXACT:
        # Without a seed, row 0 is the residual.
        m_residual = ~m_ok
    b_label = tl.where(m_residual, count, b_label)
    tl.store(out.p_labels + start + o_n, tl.where(m_valid, b_label, -1).to(tl.int64), mask=m_n)
    # A replay has already written its rows up to C, zeros without a seed.
    first = tl.maximum(count + 1, step)
    p_row = p_image + first.to(tl.int64) * stride_row
    for i_row in range(first, C + 1):
        tl.store(p_row, tl.zeros((BLOCK_N,), dtype=tl.float32), mask=m_n)
        p_row += stride_row
        if not REPLAY:
            tl.store(p_seed + i_row - 1, -1)


def cluster_images(
    chunk: Chunk,
    valid: Tensor | None,
    importance: Tensor | None,
    budget: Tensor | None,
    knn: Tensor,
    density: Tensor,
    options,
    loop,
    parent: Tensor,
    delta: Tensor,
    score: Tensor,
    masks: Tensor,
    labels: Tensor,
    seeds: Tensor,
    counts: Tensor,
    target: Tensor,
    scratch: Tensor,
    replay: bool,
) -> None:
    """Write parents, delta, score, masks and labels of a chunk with distance rows.

    `SETOK_CUDA=1` launches the CUDA kernel instead.

    Args:
        chunk: images of the chunk.
        valid: (T,) uint8 flags or None.
        importance: (T,) weights of the scores or None.
        budget: (images,) int64 maximum number of seeds; None for C, and in a replay.
        knn: (T, K) int64 neighbours, ascending.
        density: (T,) float32 local densities.
        options: `MaskOptions` of the call.
        loop: `LoopOptions` of the call.
        parent: (T,) int64 parents, output or replayed.
        delta: output, (T,) float32 seed distances.
        score: output, (T,) float32 seed scores.
        masks: output, (images, C + 1, N) of the chunk, or packed (C + 1, T).
        labels: output, (T,) int64 labels.
        seeds: (images, C) int64 seeds, output (initially -1) or replayed.
        counts: (images,) int64 counts, output or replayed.
        target: output, (T,) int32 token of delta: the parent, without one the farthest token.
        scratch: (T,) int32 buffer.
        replay: flag: parents, seeds and counts are inputs.
    """
    out = Clusters(knn, parent, seeds, counts, masks, density, delta, score, labels)
    if _cuda_kernels.requested():
        cuda_image.cluster_images(chunk, valid, importance, budget, options, loop, out, replay)
        return
    launch = image_config(chunk.longest)
    image_fwd_kernel[(chunk.images,)](
        *(Images.of(chunk), valid, importance, budget, options.learnable, out),
        *(target, scratch),
        *(loop.max_clusters, knn.shape[1], chunk.longest, host_pitch(chunk.longest)),
        *(loop.stop_residual, loop.min_mass),
        *(*MaskLayout.of(masks), seeds.stride(0)),
        KERNEL=options.kernel,
        SIGMOID=options.alpha == "sigmoid",
        DISTINCT=loop.distinct_seeds,
        EXACT=loop.exact,
        NORMALISE=options.score_norm_max,
        REPLAY=replay,
        WEIGHED=loop.min_mass > 0 and not loop.exact,
        BLOCK_N=launch.block_n,
        BLOCK_P=4 * launch.num_warps,
        BLOCK_T=min(128, launch.block_n),
        WARPS=launch.num_warps if launch.block_n >= 32 * launch.num_warps else 1,
        num_warps=launch.num_warps,
    )
