"""Kernels of the gradient of the features from gradients of squared distances."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.common import COUNTERS, Clusters, Images, Tokens, farthest, flagged, locate
from setok_triton.configs import coefficient_precision, max_registers, merge_config, token_config
from setok_triton.scope import MaskLayout
from setok_triton.weighted_sums import weighted_sums


class SeedTerms(NamedTuple):
    """Terms of the gradient from the distances to the seeds, whose gradients are G_ci."""

    p_live: Tensor  # (B,) int64 number of rows up to the last seed
    p_total: Tensor  # (T,) float32 sum_c G_ci
    p_mixed: Tensor  # (T, D) float32 sum_c G_ci y_seed_c
    p_mass: Tensor  # (B, C) float32 sum_i G_ci
    p_sums: Tensor  # (B, C, D) float32 sum_i G_ci y_i


@triton.jit(do_not_specialize=COUNTERS)
def edges_bwd_kernel(
    x,
    images,
    out,  # Clusters of the forward pass
    p_grad_density,  # (T,) float32
    p_grad_delta,  # (T,) float32
    p_targets,  # (T, K + 1) int32 neighbours and target of delta among all tokens, T for none
    p_weights,  # (T, 2) float32 gradient of the distance to each neighbour, and to that target
    K,
    T,
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the token pairs of density and delta, and the gradients of their distances."""
    at = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_N))
    i_b, i_n, start, n = at
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_ok = flagged(images.p_ok, start, o_n, m_n)
    factor, sigma = tl.load(images.p_factor + i_b), tl.load(images.p_sigma + i_b)
    p_out = p_targets + (start + o_n) * (K + 1)
    b_found = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for i_k in range(K):
        # (N,) neighbour i_k of each token
        b_other = tl.load(out.p_knn + (start + o_n) * K + i_k, mask=m_ok, other=-1)
        m_pair = m_ok & (b_other >= 0)
        b_found += m_pair.to(tl.float32)
        tl.store(p_out + i_k, tl.where(m_pair, start + b_other, T).to(tl.int32), mask=m_n)
    b_density = tl.load(out.p_density + start + o_n, mask=m_n, other=0.0)  # (N,)
    b_grad = tl.load(p_grad_density + start + o_n, mask=m_n, other=0.0)  # (N,)
    # d rho / d distance = -sigma rho / count, equal for all neighbours
    b_near = -sigma * (b_density * b_grad / tl.maximum(b_found, 1.0))
    tl.store(p_weights + (start + o_n) * 2, tl.where(m_ok, b_near, 0.0), mask=m_n)

    b_target = tl.load(out.p_parent + start + o_n, mask=m_ok, other=-1)  # (N,)
    # As in the forward pass: most blocks have no top token, and an image has one.
    m_top = m_ok & (b_target < 0)
    top = tl.max(tl.where(m_top, o_n, -1), axis=0)
    while top >= 0:
        _, far = farthest(x, images, at, top, factor, L, BLOCK_N, BLOCK_D)
        b_target = tl.where(o_n == top, far.to(tl.int64), b_target)
        m_top = m_top & (o_n != top)
        top = tl.max(tl.where(m_top, o_n, -1), axis=0)
    b_delta = tl.load(out.p_delta + start + o_n, mask=m_n, other=0.0)  # (N,)
    b_grad = tl.load(p_grad_delta + start + o_n, mask=m_n, other=0.0)  # (N,)
    # A clamped delta has no gradient.
    m_slope = m_ok & (b_delta < 3.4028234663852886e38)
    tl.store(p_weights + (start + o_n) * 2 + 1, tl.where(m_slope, sigma * b_grad, 0.0), mask=m_n)
    tl.store(p_out + K, tl.where(m_ok, start + b_target, T).to(tl.int32), mask=m_n)


@triton.jit(do_not_specialize=COUNTERS)
def pull_sums_bwd_kernel(
    x,
    images,
    p_live,  # (B,) int64
    p_rows,  # gradients of the distances from the seeds, rows stride_row apart
    p_sums,  # (B, C, D) float32
    p_mass,  # (B, C) float32
    C,
    L,
    stride_image,
    stride_row,
    stride_start,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write sum_i G_ci y_i and sum_i G_ci for a block of seeds and one of features."""
    feature_blocks = tl.cdiv(x.D, BLOCK_D)
    i_b, i_tile, start, n = locate(images.p_offsets, L, tl.cdiv(C, BLOCK_C) * feature_blocks)
    i_c, i_d = i_tile // feature_blocks * BLOCK_C, i_tile % feature_blocks
    o_c, o_d = i_c + tl.arange(0, BLOCK_C), i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    live, factor = tl.load(p_live + i_b).to(tl.int32), tl.load(images.p_factor + i_b)
    m_c = o_c < live
    n = tl.where(i_c < live, n, 0)
    p_coefs = p_rows + i_b * stride_image + start * stride_start + o_c.to(tl.int64) * stride_row
    b_sum, b_mass = weighted_sums(
        x, images.p_ok, None, p_coefs, m_c, o_d, start, n, factor, PRECISION, BLOCK_N
    )
    p_out = p_sums + (i_b * C + o_c)[:, None] * x.D + o_d[None, :]
    tl.store(p_out, b_sum, mask=m_c[:, None] & (o_d < x.D)[None, :])
    tl.store(p_mass + i_b * C + o_c, b_mass, mask=m_c & (o_c < tl.where(i_d == 0, C, 0)))


@triton.jit(do_not_specialize=COUNTERS)
def features_bwd_kernel(
    x,
    images,
    p_targets,  # (T, K + 1) int32
    p_weights,  # (T, 2) float32
    p_order,  # (T (K + 1),) int64 edges sorted by their target
    p_bounds,  # (T + 1,) int64 first edge of each target
    p_seeds,  # (B, C) int64
    seed_terms,  # SeedTerms, or None without a gradient of the masks
    p_out,  # (T, D)
    C,
    K,
    L,
    T,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the gradient of one token for a block of features: outgoing and incoming edges, seeds.

    The gradient of w ||y_i - y_j||^2 by y_i is 2 w (y_i - y_j), for both ends of a pair. y are the
    tokens in range, factor times x.
    """
    D, feature_blocks = x.D, tl.cdiv(x.D, BLOCK_D)
    i_b, i_rest, start, n = locate(images.p_offsets, L, L * feature_blocks)
    i_n = i_rest // feature_blocks
    o_d = i_rest % feature_blocks * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    if i_n < n:
        token = start + i_n
        m_d = o_d < D
        p_columns = x.p_x + (o_d * x.stride_d)[None, :]
        present = tl.load(images.p_ok + token) != 0
        factor = tl.load(images.p_factor + i_b)
        p_token = x.p_x + token * x.stride_n + o_d * x.stride_d
        m_token = o_d < tl.where(present, D, 0)
        b_y = tl.load(p_token, mask=m_token, other=0.0).to(tl.float32)  # (D,)
        b_y *= factor
        b_sum = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
        o_e = tl.arange(0, BLOCK_N)
        for i_e in range(0, K + 1, BLOCK_N):
            o_k = i_e + o_e
            # (N,) targets of the token's edges, then their weights
            b_other = tl.load(p_targets + token * (K + 1) + o_k, mask=o_k <= K, other=T)
            m_e = b_other < T
            b_w = tl.load(p_weights + token * 2 + (o_k == K).to(tl.int32), mask=m_e, other=0.0)
            p_other = p_columns + (b_other.to(tl.int64) * x.stride_n)[:, None]
            m_o = m_e[:, None] & m_d[None, :]
            b_o = tl.load(p_other, mask=m_o, other=0.0).to(tl.float32)  # (N, D)
            b_sum += b_w[:, None] * (b_y[None, :] - b_o * factor)
        end = tl.load(p_bounds + token + 1)
        for i_e in range(tl.load(p_bounds + token), end, BLOCK_N):
            m_e = i_e + o_e < end
            b_edge = tl.load(p_order + i_e + o_e, mask=m_e, other=0)  # (N,) incoming edges
            b_other = b_edge // (K + 1)
            p_weight = p_weights + b_other * 2 + (b_edge % (K + 1) == K).to(tl.int32)
            b_w = tl.load(p_weight, mask=m_e, other=0.0)  # (N,)
            p_other = p_columns + (b_other * x.stride_n)[:, None]
            m_o = m_e[:, None] & m_d[None, :]
            b_o = tl.load(p_other, mask=m_o, other=0.0).to(tl.float32)  # (N, D)
            b_sum += b_w[:, None] * (b_y[None, :] - b_o * factor)
        b_grad = tl.zeros((BLOCK_D,), dtype=tl.float32)
        if seed_terms is not None:
            b_grad = tl.load(seed_terms.p_total + token) * b_y
            b_grad -= tl.load(seed_terms.p_mixed + token * D + o_d, mask=m_d, other=0.0)  # (D,)
            # A token may be the seed of several clusters; most are the seed of none.
            live = tl.load(seed_terms.p_live + i_b).to(tl.int32)
            for i_c in range(0, live, BLOCK_N):
                o_c = i_c + o_e
                # (N,)
                b_seed = tl.load(p_seeds + i_b * C + o_c, mask=o_c < live, other=-1).to(tl.int32)
                m_c = b_seed == i_n
                if tl.max(m_c.to(tl.int32), axis=0) > 0:
                    b_mass = tl.load(seed_terms.p_mass + i_b * C + o_c, mask=m_c, other=0.0)
                    p_row = seed_terms.p_sums + ((i_b * C + o_c) * D)[:, None] + o_d[None, :]
                    b_row = tl.load(p_row, mask=m_c[:, None] & m_d[None, :], other=0.0)  # (N, D)
                    b_sum += b_mass[:, None] * b_y[None, :] - b_row
        b_grad = 2.0 * (b_grad + tl.sum(b_sum, axis=0)) * factor
        b_grad = tl.where(present, b_grad, 0.0).to(p_out.dtype.element_ty)
        tl.store(p_out + token * D + o_d, b_grad, mask=m_d)


def edges(
    x: Tensor, chunk: Chunk, out: Clusters, grads: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the token pairs of density and delta with their gradients.

    Args:
        x: (T, D) tokens of all images.
        chunk: images of the batch.
        out: decisions and values of the forward pass.
        grads: (T,) float32 gradients of density and delta.

    Returns:
        (T, K + 1) int32 targets of the pairs, T for none, and (T, 2) float32 gradients of their
        squared distances: of each neighbour's, and of the last one.
    """
    config, k, total = token_config(x.dtype), out.p_knn.shape[-1], x.shape[0]
    blocks = triton.cdiv(chunk.longest, config.block_n)
    targets = x.new_empty(total, k + 1, dtype=torch.int32)
    weights = x.new_empty(total, 2, dtype=torch.float32)
    edges_bwd_kernel[(chunk.images * blocks,)](
        *(Tokens.of(x), Images.of(chunk), out, *grads, targets, weights, k, total, chunk.longest),
        **config.launch(),
        maxnreg=max_registers(x),
    )
    return targets, weights


def seed_sums(
    x: Tensor, chunk: Chunk, live: Tensor, rows: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Sum the tokens, weighted by the gradients of their distances to each seed.

    Args:
        x: (T, D) tokens of all images.
        chunk: images of the batch.
        live: (B,) int64 number of rows up to the last seed.
        rows: (B, C + 1, N) or packed (C + 1, T) float32 gradients of the distances to the seeds.
        count: maximum number of seeds C.

    Returns:
        (B, C, D) float32 weighted sums of the tokens, and (B, C) float32 sums of the weights;
        unwritten from `live` on.
    """
    config, dim = merge_config(x.dtype), x.shape[1]
    sums = rows.new_empty(chunk.images, count, dim)
    mass = rows.new_empty(chunk.images, count)
    row_blocks = triton.cdiv(count, config.block_m)
    feature_blocks = triton.cdiv(dim, config.block_n)
    pull_sums_bwd_kernel[(chunk.images * row_blocks * feature_blocks,)](
        *(Tokens.of(x), Images.of(chunk), live, rows, sums, mass, count, chunk.longest),
        *MaskLayout.of(rows),
        PRECISION=coefficient_precision(x.dtype),
        # Scaled tokens need extra registers, more than four warps have.
        **config.launch("BLOCK_C", "BLOCK_D", "BLOCK_N") | {"num_warps": 8},
    )
    return sums, mass
