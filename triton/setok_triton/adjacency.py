"""Kernels of the graph of the gradient: for each token its pairs with other tokens.

An edge goes from a token to a neighbour, or to the token of its delta. Its weight w is the gradient
of its squared distance, and both ends get 2 w (y_i - y_j). So each token needs its own edges and
those of others to it. An edge with a counterpart is merged into it. Edges without one are sorted by
their ends: counted by integer atomics, placed, and ranked within their segment, which makes the
order independent of the schedule.

The edges of a token have slots: 0 to K - 1 for the neighbours, K for the token of delta if it is no
neighbour. Slot K + 1 is slot K's entry in the segment of the token itself.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.common import COUNTERS, FAR_INDEX, Clusters, Images, flagged, locate
from setok_triton.importance import load_weights
from setok_triton.scope import LARGEST

# Tokens of a program, and slots that it reads at once.
TOKENS, SLOTS = 16, 16


class Adjacency(NamedTuple):
    """Pairs of each token; indices are those within the image."""

    p_pairs: Tensor  # (T, K) int64 pairs with the neighbours, as of `pack`
    p_entries: Tensor  # (T (K + 2),) int64 other pairs by token; an image has n (K + 2) of them
    p_begin: Tensor  # (T,) int32 first entry of a token among those of the image
    p_degree: Tensor  # (T,) int32 number of its entries
    p_order: Tensor  # (T,) int32 tokens of an image: seeds, then those with most entries first
    p_first: Tensor | None  # (T,) int32 first cluster with this seed, or FAR_INDEX
    p_next: Tensor | None  # (B, C) int32 next cluster with the same seed, or FAR_INDEX


class ScoreGrads(NamedTuple):
    """Gradient of the score, and what `score_bwd_kernel` writes for each image."""

    p_grad: Tensor  # (T,) float32
    p_norm: Tensor  # (B, 2) float32 maximum of rho * delta * w or 1, and its gradient
    p_top: Tensor  # (B,) int32 token of the maximum, -1 for none


@triton.jit
def pack(b_other, b_weight):
    """Return the other end of a pair (int32) and its weight in one word."""
    b_high = b_weight.to(tl.int32, bitcast=True).to(tl.int64) << 32
    return b_high | (b_other.to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def unpack(b_pair):
    """Return the other end (int32) and the weight of a pair."""
    return b_pair.to(tl.int32), (b_pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def add_score_grads(scores, p_importance, p_grad_importance, at, o_n, m_n, b_rho, b_delta):
    """Return the gradients (N,) of density and delta by the score; write those of the weights.

    This is the product rule of rho * delta * w.
    """
    largest = tl.load(scores.p_norm + at.i_b * 2)
    norm_grad = tl.load(scores.p_norm + at.i_b * 2 + 1)
    b_raw = tl.load(scores.p_grad + at.start + o_n, mask=m_n, other=0.0) / largest  # (N,)
    b_raw = tl.where(o_n == tl.load(scores.p_top + at.i_b), b_raw - norm_grad, b_raw)
    if p_importance is not None:
        b_weight, m_fit = load_weights(p_importance, at.start, o_n, m_n)
        # A clamped score has no gradient.
        b_raw = tl.where(b_rho * b_delta * b_weight <= LARGEST, b_raw, 0.0)
        b_grad = tl.where(m_fit, b_raw * (b_rho * b_delta), 0.0)
        tl.store(p_grad_importance + at.start + o_n, b_grad, mask=m_n)
        b_raw *= b_weight
    return b_raw * b_delta, b_raw * b_rho


@triton.jit
def first_cluster(p_seed, C, o_i, o_c, BLOCK_C):
    """Return the first cluster (N,) after o_c (N,) whose seed is token o_i, FAR_INDEX for none."""
    b_first = tl.full((o_i.shape[0],), FAR_INDEX, dtype=tl.int32)
    for i_c in range(0, C, BLOCK_C):
        o_row = i_c + tl.arange(0, BLOCK_C)
        b_seed = tl.load(p_seed + o_row, mask=o_row < C, other=-1).to(tl.int32)  # (C,)
        m_seed = (b_seed[None, :] == o_i[:, None]) & (o_row[None, :] > o_c[:, None])
        m_seed = m_seed & (b_seed >= 0)[None, :]
        b_first = tl.minimum(b_first, tl.min(tl.where(m_seed, o_row[None, :], FAR_INDEX), axis=1))
    return b_first


@triton.jit(do_not_specialize=COUNTERS)
def edges_bwd_kernel(
    images,
    out,  # Clusters of the forward pass
    p_target,  # (T,) int32 token of delta
    p_grad_density,  # (T,) float32, or None
    p_grad_delta,  # (T,) float32, or None
    scores,  # ScoreGrads or None
    p_importance,  # (T,) weights of the scores, or None
    p_grad_importance,  # (T,) float32; None without weights
    edges,  # Adjacency
    p_slots,  # (T, K + 1) int64 edges, as of `pack`; -1 for none
    C,
    K,
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write the edges of density and delta, and the gradients of their squared distances."""
    at = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_N))
    i_b, i_n, start, n = at
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_ok = flagged(images.p_ok, start, o_n, m_n)
    sigma = tl.load(images.p_sigma + i_b)
    b_rho = tl.load(out.p_density + start + o_n, mask=m_n, other=0.0)  # (N,)
    b_delta = tl.load(out.p_delta + start + o_n, mask=m_n, other=0.0)  # (N,)
    b_near = tl.zeros((BLOCK_N,), dtype=tl.float32)
    b_far = tl.zeros((BLOCK_N,), dtype=tl.float32)
    if p_grad_density is not None:
        b_near += tl.load(p_grad_density + start + o_n, mask=m_n, other=0.0)
    if p_grad_delta is not None:
        b_far += tl.load(p_grad_delta + start + o_n, mask=m_n, other=0.0)
    if scores is not None:
        b_by_rho, b_by_delta = add_score_grads(
            scores, p_importance, p_grad_importance, at, o_n, m_n, b_rho, b_delta
        )
        b_near += b_by_rho
        b_far += b_by_delta
    elif p_grad_importance is not None:
        tl.store(p_grad_importance + start + o_n, tl.zeros_like(b_near), mask=m_n)
    b_target = tl.load(p_target + start + o_n, mask=m_ok, other=-1)  # (N,)
    # A clamped delta has no gradient.
    b_far = tl.where(m_ok & (b_delta < LARGEST), sigma * b_far, 0.0)
    p_knn = out.p_knn + ((start + o_n) * K)[:, None]
    b_found = tl.zeros((BLOCK_N,), dtype=tl.int32)
    b_slot = tl.full((BLOCK_N,), FAR_INDEX, dtype=tl.int32)
    for i_k in range(0, K, BLOCK_K):
        o_k = (i_k + tl.arange(0, BLOCK_K))[None, :]
        # (N, K) neighbours
        b_other = tl.load(p_knn + o_k, mask=m_ok[:, None] & (o_k < K), other=-1).to(tl.int32)
        b_found += tl.sum((b_other >= 0).to(tl.int32), axis=1)
        m_same = (b_other >= 0) & (b_other == b_target[:, None])
        b_slot = tl.minimum(b_slot, tl.min(tl.where(m_same, o_k, FAR_INDEX), axis=1))
    # d rho / d distance = -sigma rho / count, equal for all neighbours
    b_near = -sigma * (b_rho * b_near / tl.maximum(b_found, 1).to(tl.float32))
    p_edge = ((start + o_n) * (K + 1))[:, None]
    for i_k in range(0, K + 1, BLOCK_K):
        o_k = (i_k + tl.arange(0, BLOCK_K))[None, :]
        b_other = tl.load(p_knn + o_k, mask=m_ok[:, None] & (o_k < K), other=-1).to(tl.int32)
        b_weight = b_near[:, None] + tl.where(o_k == b_slot[:, None], b_far[:, None], 0.0)
        m_far = (o_k == K) & (b_slot == FAR_INDEX)[:, None]
        b_other = tl.where(m_far, b_target[:, None], b_other)
        b_weight = tl.where(o_k == K, b_far[:, None], b_weight)
        # A token's distance to itself is constant. An index that nobody checked counts nowhere.
        b_other = tl.where((b_other == o_n[:, None]) | (b_other >= n), -1, b_other)
        m_slot = m_n[:, None] & (o_k <= K)
        tl.store(p_slots + p_edge + o_k, pack(b_other, b_weight), mask=m_slot)
    tl.store(edges.p_degree + start + o_n, tl.zeros_like(b_slot), mask=m_n)
    if edges.p_first is not None:
        b_none = tl.full((BLOCK_N,), -1, dtype=tl.int32)
        b_first = first_cluster(out.p_seeds + i_b * C, C, o_n, b_none, 16)
        tl.store(edges.p_first + start + o_n, b_first, mask=m_n)


@triton.jit(do_not_specialize=COUNTERS)
def pairs_bwd_kernel(
    p_offsets,
    edges,  # Adjacency
    p_slots,  # (T, K + 1) int64
    p_ranks,  # (T, K + 2) int32 place of a slot's entry in its segment, in any order; -1 for none
    K,
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Merge edges in both directions, and count the entries that remain of each token.

    The merged weight is in the first slot with the neighbour, should a list repeat it.
    """
    _, i_n, start, n = locate(p_offsets, L, tl.cdiv(L, BLOCK_N))
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    p_edge = (start + o_n) * (K + 1)
    for i_k in range(0, K + 1, BLOCK_K):
        o_k = (i_k + tl.arange(0, BLOCK_K))[None, :]
        m_slot = m_n[:, None] & (o_k <= K)
        # (N, K) other end and weight of each slot
        b_slot = tl.load(p_slots + p_edge[:, None] + o_k, mask=m_slot, other=-1)
        b_other, b_weight = unpack(b_slot)
        m_edge = b_other >= 0
        m_near = m_edge & (o_k < K)
        b_back = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
        m_back = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.int1)
        m_again = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.int1)
        # Slots without an edge read those of a token of the block: loads without a mask overlap.
        b_there = tl.minimum(o_n, n - 1)
        p_own = p_slots + (start + b_there) * (K + 1)
        p_other = p_slots + (start + tl.where(m_near, b_other, b_there[:, None])) * (K + 1)
        for i in tl.range(0, tl.where(i_n * BLOCK_N < n, K, 0), loop_unroll_factor=4):
            b_of_other, b_by_other = unpack(tl.load(p_other + i))
            m_same = m_near & (b_of_other == o_n[:, None])
            b_back += tl.where(m_same, b_by_other, 0.0)
            m_back = m_back | m_same
            b_own = tl.load(p_own + i).to(tl.int32)  # (N,)
            m_again = m_again | ((b_own[:, None] == b_other) & (i < o_k))
        b_weight += tl.where(m_again, 0.0, b_back)
        # Without an edge the token itself, with weight 0: nothing needs a mask.
        b_pair = pack(tl.where(m_edge, b_other, o_n[:, None]), tl.where(m_edge, b_weight, 0.0))
        p_pair = edges.p_pairs + ((start + o_n) * K)[:, None] + o_k
        tl.store(p_pair, b_pair, mask=m_n[:, None] & (o_k < K))
        m_entry = m_edge & ~m_back
        p_count = edges.p_degree + start + b_other
        b_rank = tl.atomic_add(p_count, 1, mask=m_entry, sem="relaxed")
        p_rank = p_ranks + ((start + o_n) * (K + 2))[:, None] + o_k
        tl.store(p_rank, tl.where(m_entry, b_rank, -1), mask=m_slot)
        # The other end of slot K, which no neighbour has.
        m_far = m_edge & (o_k == K)
        p_count = edges.p_degree + start + tl.broadcast_to(o_n[:, None], b_other.shape)
        b_rank = tl.atomic_add(p_count, 1, mask=m_far, sem="relaxed")
        tl.store(p_rank + 1, tl.where(m_far, b_rank, -1), mask=m_slot & (o_k == K))


@triton.jit
def degree_class(edges, p_token, m_n):
    """Return numbers of entries, and classes of them: 0 for seeds, 1 for most to 7 for fewest."""
    b_degree = tl.load(edges.p_degree + p_token, mask=m_n, other=0)
    b_class = 7 - (b_degree > 0).to(tl.int32) - (b_degree > 1).to(tl.int32)
    b_class -= (b_degree > 3).to(tl.int32) + (b_degree > 5).to(tl.int32)
    b_class -= (b_degree > 8).to(tl.int32) + (b_degree > 13).to(tl.int32)
    if edges.p_first is not None:
        b_first = tl.load(edges.p_first + p_token, mask=m_n, other=0)
        b_class = tl.where(b_first < FAR_INDEX, 0, b_class)
    return b_degree, b_class


@triton.jit(do_not_specialize=COUNTERS)
def order_bwd_kernel(
    p_offsets,
    p_seeds,  # (B, C) int64
    edges,  # Adjacency
    C,
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the first entry of each token of an image, and the tokens by their number of entries.

    Tokens with about as many entries come together, because a block takes as many turns as its
    largest token needs. So do the seeds, for which a block does more. Also write the next cluster
    with the same seed.
    """
    i_b, _, start, n = locate(p_offsets, L, 1)
    o_n = tl.arange(0, BLOCK_N)
    o_class = tl.arange(0, 8)[None, :]
    b_sizes = tl.zeros((8,), dtype=tl.int32)
    entries = tl.zeros((), dtype=tl.int32)
    for i_n in range(0, n, BLOCK_N):
        m_n = i_n + o_n < n
        b_degree, b_class = degree_class(edges, start + i_n + o_n, m_n)  # (N,)
        b_begin = entries + tl.cumsum(b_degree, axis=0) - b_degree
        tl.store(edges.p_begin + start + i_n + o_n, b_begin, mask=m_n)
        entries += tl.sum(b_degree, axis=0)
        m_class = (b_class[:, None] == o_class) & m_n[:, None]
        b_sizes += tl.sum(m_class.to(tl.int32), axis=0)
    b_next = tl.cumsum(b_sizes, axis=0) - b_sizes  # (8,) place of the next token of each class
    for i_n in range(0, n, BLOCK_N):
        m_n = i_n + o_n < n
        b_class = degree_class(edges, start + i_n + o_n, m_n)[1]  # (N,)
        m_class = (b_class[:, None] == o_class) & m_n[:, None]
        b_one = m_class.to(tl.int32)
        b_place = b_next[None, :] + tl.cumsum(b_one, axis=0) - 1
        b_place = tl.sum(tl.where(m_class, b_place, 0), axis=1)
        tl.store(edges.p_order + start + b_place, i_n + o_n, mask=m_n)
        b_next += tl.sum(b_one, axis=0)
    if edges.p_next is not None:
        p_seed = p_seeds + i_b * C
        for i_c in range(0, C, BLOCK_C):
            o_c = i_c + tl.arange(0, BLOCK_C)
            b_seed = tl.load(p_seed + o_c, mask=o_c < C, other=-1).to(tl.int32)  # (C,)
            b_after = first_cluster(p_seed, C, b_seed, o_c, BLOCK_C)
            tl.store(edges.p_next + i_b * C + o_c, b_after, mask=o_c < C)


@triton.jit
def entry(p_offsets, edges, p_slots, p_ranks, i_k, K, L, BLOCK_N, BLOCK_K):
    """Return number, segment, its size, rank, mask and pair of the entries (N, K) from i_k on."""
    _, i_n, start, n = locate(p_offsets, L, tl.cdiv(L, BLOCK_N))
    o_n = (i_n * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    o_k = (i_k + tl.arange(0, BLOCK_K))[None, :]
    b_id = o_n * (K + 2) + o_k
    m_slot = (o_n < n) & (o_k < K + 2)
    b_rank = tl.load(p_ranks + start * (K + 2) + b_id, mask=m_slot, other=-1)
    m_entry = b_rank >= 0
    # Slots K and K + 1 have the same edge.
    p_slot = p_slots + (start + o_n) * (K + 1) + tl.minimum(o_k, K)
    b_target, b_weight = unpack(tl.load(p_slot, mask=m_entry, other=0))
    b_owner = tl.where(o_k > K, o_n, b_target)
    b_pair = pack(tl.where(o_k > K, b_target, o_n), b_weight)
    b_degree = tl.load(edges.p_degree + start + b_owner, mask=m_entry, other=0)
    b_begin = tl.load(edges.p_begin + start + b_owner, mask=m_entry, other=0)
    return start, b_id, b_begin, b_degree, b_rank, m_entry, b_pair


@triton.jit(do_not_specialize=COUNTERS)
def place_bwd_kernel(
    p_offsets,
    edges,  # Adjacency
    p_slots,  # (T, K + 1) int64
    p_ranks,  # (T, K + 2) int32
    p_placed,  # (T (K + 2),) int32 entries by segment, in any order within it
    K,
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write the entries into their segments, in the order of the atomics."""
    for i_k in range(0, K + 2, BLOCK_K):
        start, b_id, b_begin, _, b_rank, m_entry, _ = entry(
            p_offsets, edges, p_slots, p_ranks, i_k, K, L, BLOCK_N, BLOCK_K
        )
        tl.store(p_placed + start * (K + 2) + b_begin + b_rank, b_id, mask=m_entry)


@triton.jit(do_not_specialize=COUNTERS)
def rank_bwd_kernel(
    p_offsets,
    edges,  # Adjacency
    p_slots,  # (T, K + 1) int64
    p_ranks,  # (T, K + 2) int32
    p_placed,  # (T (K + 2),) int32
    K,
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write the entries of each segment in the order of their numbers."""
    for i_k in range(0, K + 2, BLOCK_K):
        start, b_id, b_begin, b_degree, _, m_entry, b_pair = entry(
            p_offsets, edges, p_slots, p_ranks, i_k, K, L, BLOCK_N, BLOCK_K
        )
        o_begin = start * (K + 2) + b_begin
        # Slots without an entry read a rank: loads without a mask overlap.
        p_segment = tl.where(m_entry, p_placed + o_begin, p_ranks + start * (K + 2))
        b_last = tl.maximum(b_degree - 1, 0)
        b_rank = tl.zeros_like(b_id)
        for i in tl.range(0, tl.max(b_degree), loop_unroll_factor=4):
            b_placed = tl.load(p_segment + tl.minimum(i, b_last))
            b_rank += ((b_placed < b_id) & (i < b_degree)).to(tl.int32)
        tl.store(edges.p_entries + o_begin + b_rank, b_pair, mask=m_entry)


def adjacency(
    chunk: Chunk,
    out: Clusters,
    target: Tensor,
    grads: tuple[Tensor | None, Tensor | None],
    scores: ScoreGrads | None,
    importance: Tensor | None,
    seeded: bool,
) -> tuple[Adjacency, Tensor | None]:
    """Return the pairs of all tokens, and the gradients of the weights of the scores.

    Args:
        chunk: images of the batch.
        out: decisions and values of the forward pass.
        target: (T,) int32 token of delta.
        grads: (T,) float32 gradients of density and delta, each or None.
        scores: gradient of the score or None.
        importance: (T,) weights of the scores or None.
        seeded: flag: also write the clusters of each seed.

    Returns:
        Pairs, and (T,) float32 gradients of the weights, None without weights.
    """
    k, (images, clusters) = out.p_knn.shape[-1], out.p_seeds.shape
    total, longest, like = out.p_density.numel(), chunk.longest, target
    entries = total * (k + 2)
    edges = Adjacency(
        like.new_empty(total, k, dtype=torch.int64),
        like.new_empty(entries, dtype=torch.int64),
        *(like.new_empty(total) for _ in range(3)),
        like.new_empty(total) if seeded else None,
        like.new_empty(images, clusters) if seeded else None,
    )
    slots = like.new_empty(total, k + 1, dtype=torch.int64)
    ranks, placed = like.new_empty(total, k + 2), like.new_empty(entries)
    grad_importance = None
    if importance is not None:
        grad_importance = torch.empty_like(importance, dtype=torch.float32)
    grid = (images * triton.cdiv(longest, TOKENS),)
    launch = dict(BLOCK_N=TOKENS, BLOCK_K=SLOTS, num_warps=4)
    edges_bwd_kernel[grid](
        *(Images.of(chunk), out, target, *grads, scores, importance, grad_importance),
        *(edges, slots, clusters, k, longest),
        **launch,
    )
    pairs_bwd_kernel[grid](chunk.offsets, edges, slots, ranks, k, longest, **launch)
    order_bwd_kernel[(images,)](
        *(chunk.offsets, out.p_seeds, edges, clusters, longest),
        BLOCK_N=min(1024, max(32, triton.next_power_of_2(longest))),
        BLOCK_C=32,
        num_warps=8,
    )
    place_bwd_kernel[grid](chunk.offsets, edges, slots, ranks, placed, k, longest, **launch)
    rank_bwd_kernel[grid](*(chunk.offsets, edges, slots, ranks, placed, k, longest), **launch)
    return edges, grad_importance
