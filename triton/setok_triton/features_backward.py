"""Kernels that carry the gradients of squared distances to the features."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.common import farthest, locate
from setok_triton.configs import merge_config, share_precision, token_config
from setok_triton.scope import MaskLayout
from setok_triton.shares import share_sums


@triton.jit(do_not_specialize=["D", "K", "T", "L"])
def edges_bwd_kernel(
    p_x,
    p_ok,
    p_offsets,
    p_factor,
    p_sigma,
    p_knn,
    p_parent,
    p_density,
    p_delta,
    p_grad_density,
    p_grad_delta,
    p_targets,  # (T, K + 1) int32 neighbours and target of delta among all tokens, T for none
    p_weights,  # (T, 2) float32 gradients of the distances to any neighbour, and to that target
    D,
    K,
    T,
    L,
    blocks_per_image,
    stride_n,
    stride_d,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The pairs of tokens behind density and delta, and the gradients of their distances."""
    i_b, i_n, start, n = locate(p_offsets, L, blocks_per_image)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_ok = m_n & (tl.load(p_ok + start + o_n, mask=m_n, other=0) != 0)
    factor, sigma = tl.load(p_factor + i_b), tl.load(p_sigma + i_b)
    p_out = p_targets + (start + o_n) * (K + 1)
    b_found = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for i_k in range(K):
        b_other = tl.load(p_knn + (start + o_n) * K + i_k, mask=m_ok, other=-1)
        m_pair = m_ok & (b_other >= 0)
        b_found += m_pair.to(tl.float32)
        tl.store(p_out + i_k, tl.where(m_pair, start + b_other, T).to(tl.int32), mask=m_n)
    b_density = tl.load(p_density + start + o_n, mask=m_n, other=0.0)
    b_grad = tl.load(p_grad_density + start + o_n, mask=m_n, other=0.0)
    b_near = -sigma * (b_density * b_grad / tl.maximum(b_found, 1.0))
    tl.store(p_weights + (start + o_n) * 2, tl.where(m_ok, b_near, 0.0), mask=m_n)

    b_target = tl.load(p_parent + start + o_n, mask=m_ok, other=-1)
    # As in the forward pass: mostly none, and one in an image.
    m_top = m_ok & (b_target < 0)
    top = tl.max(tl.where(m_top, o_n, -1), axis=0)
    while top >= 0:
        _, far = farthest(
            p_x,
            p_ok,
            p_x,
            start,
            i_b,
            top,
            n,
            factor,
            D,
            0,
            stride_n,
            stride_d,
            False,
            BLOCK_N,
            BLOCK_D,
        )
        b_target = tl.where(o_n == top, far.to(tl.int64), b_target)
        m_top = m_top & (o_n != top)
        top = tl.max(tl.where(m_top, o_n, -1), axis=0)
    b_delta = tl.load(p_delta + start + o_n, mask=m_n, other=0.0)
    b_grad = tl.load(p_grad_delta + start + o_n, mask=m_n, other=0.0)
    # A delta that was cut off has no slope.
    m_slope = m_ok & (b_delta < 3.4028234663852886e38)
    tl.store(p_weights + (start + o_n) * 2 + 1, tl.where(m_slope, sigma * b_grad, 0.0), mask=m_n)
    tl.store(p_out + K, tl.where(m_ok, start + b_target, T).to(tl.int32), mask=m_n)


@triton.jit(do_not_specialize=["D", "C", "L"])
def pull_sums_bwd_kernel(
    p_x,
    p_ok,
    p_offsets,
    p_factor,
    p_live,
    p_rows,  # gradients of the distances from the seeds, rows stride_row apart
    p_sums,  # (B, C, D) float32
    p_mass,  # (B, C) float32
    D,
    C,
    L,
    row_blocks,
    feature_blocks,
    stride_n,
    stride_d,
    stride_image,
    stride_row,
    stride_start,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """sum_i G_ci y_i and sum_i G_ci for a block of seeds and one of features."""
    i_b, i_tile, start, n = locate(p_offsets, L, row_blocks * feature_blocks)
    i_c, i_d = i_tile // feature_blocks * BLOCK_C, i_tile % feature_blocks
    o_c, o_d = i_c + tl.arange(0, BLOCK_C), i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    live, factor = tl.load(p_live + i_b).to(tl.int32), tl.load(p_factor + i_b)
    m_c = o_c < live
    n = tl.where(i_c < live, n, 0)
    p_shares = p_rows + i_b * stride_image + start * stride_start + o_c.to(tl.int64) * stride_row
    b_sum, b_mass = share_sums(
        p_x,
        p_ok,
        p_x,
        p_shares,
        m_c,
        o_d,
        start,
        n,
        factor,
        D,
        stride_n,
        stride_d,
        False,
        True,
        PRECISION,
        BLOCK_N,
    )
    p_out = p_sums + (i_b * C + o_c)[:, None] * D + o_d[None, :]
    tl.store(p_out, b_sum, mask=m_c[:, None] & (o_d < D)[None, :])
    tl.store(p_mass + i_b * C + o_c, b_mass, mask=m_c & (o_c < tl.where(i_d == 0, C, 0)))


@triton.jit(do_not_specialize=["D", "K", "C", "T", "L"])
def features_bwd_kernel(
    p_x,
    p_ok,
    p_offsets,
    p_factor,
    p_targets,  # (T, K + 1) int32
    p_weights,  # (T, 2)
    p_order,  # edges by the token where they end
    p_bounds,  # (T + 1,) where those of each token begin
    p_seeds,  # (B, C)
    p_live,
    p_pull,  # (T,) sum_c G_ci
    p_mixed,  # (T, D) float32 sum_c G_ci y_seed_c
    p_mass,  # (B, C) sum_i G_ci
    p_sums,  # (B, C, D) float32 sum_i G_ci y_i
    p_out,  # (T, D)
    D,
    K,
    C,
    T,
    L,
    feature_blocks,
    stride_n,
    stride_d,
    SEEDS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradient of one token for a block of features: the pairs from it, those to it, seeds."""
    i_b, i_rest, start, n = locate(p_offsets, L, L * feature_blocks)
    i_n = i_rest // feature_blocks
    o_d = i_rest % feature_blocks * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    if i_n < n:
        token = start + i_n
        m_d = o_d < D
        present = tl.load(p_ok + token) != 0
        factor = tl.load(p_factor + i_b)
        p_token = p_x + token * stride_n + o_d * stride_d
        b_y = tl.load(p_token, mask=o_d < tl.where(present, D, 0), other=0.0).to(tl.float32)
        b_y *= factor
        b_sum = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
        o_e = tl.arange(0, BLOCK_N)
        for i_e in range(0, K + 1, BLOCK_N):
            o_k = i_e + o_e
            b_other = tl.load(p_targets + token * (K + 1) + o_k, mask=o_k <= K, other=T)
            m_e = b_other < T
            b_w = tl.load(p_weights + token * 2 + (o_k == K).to(tl.int32), mask=m_e, other=0.0)
            p_other = p_x + (b_other.to(tl.int64) * stride_n)[:, None] + (o_d * stride_d)[None, :]
            b_o = tl.load(p_other, mask=m_e[:, None] & m_d[None, :], other=0.0).to(tl.float32)
            b_sum += b_w[:, None] * (b_y[None, :] - b_o * factor)
        end = tl.load(p_bounds + token + 1)
        for i_e in range(tl.load(p_bounds + token), end, BLOCK_N):
            m_e = i_e + o_e < end
            b_edge = tl.load(p_order + i_e + o_e, mask=m_e, other=0)
            b_other = b_edge // (K + 1)
            p_weight = p_weights + b_other * 2 + (b_edge % (K + 1) == K).to(tl.int32)
            b_w = tl.load(p_weight, mask=m_e, other=0.0)
            p_other = p_x + (b_other * stride_n)[:, None] + (o_d * stride_d)[None, :]
            b_o = tl.load(p_other, mask=m_e[:, None] & m_d[None, :], other=0.0).to(tl.float32)
            b_sum += b_w[:, None] * (b_y[None, :] - b_o * factor)
        b_grad = tl.zeros((BLOCK_D,), dtype=tl.float32)
        if SEEDS:
            b_grad = tl.load(p_pull + token) * b_y
            b_grad -= tl.load(p_mixed + token * D + o_d, mask=m_d, other=0.0)
            # A token may be the seed of several clusters, and mostly is that of none.
            live = tl.load(p_live + i_b).to(tl.int32)
            for i_c in range(0, live, BLOCK_N):
                o_c = i_c + o_e
                b_seed = tl.load(p_seeds + i_b * C + o_c, mask=o_c < live, other=-1).to(tl.int32)
                m_c = b_seed == i_n
                if tl.max(m_c.to(tl.int32), axis=0) > 0:
                    b_mass = tl.load(p_mass + i_b * C + o_c, mask=m_c, other=0.0)
                    p_row = p_sums + ((i_b * C + o_c) * D)[:, None] + o_d[None, :]
                    b_row = tl.load(p_row, mask=m_c[:, None] & m_d[None, :], other=0.0)
                    b_sum += b_mass[:, None] * b_y[None, :] - b_row
        b_grad = 2.0 * (b_grad + tl.sum(b_sum, axis=0)) * factor
        b_grad = tl.where(present, b_grad, 0.0).to(p_out.dtype.element_ty)
        tl.store(p_out + token * D + o_d, b_grad, mask=m_d)


def edges(x: Tensor, chunk: Chunk, out, grads: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The pairs behind density and delta.

    Args:
        x: (T, D) tokens of all images.
        chunk: the images.
        out: decisions and values of the forward pass, a `Forward`.
        grads: (T,) float32 gradients of density and delta.

    Returns:
        (T, K + 1) int32 other tokens of the pairs, T for none, and (T, 2) float32 gradients of
        their squared distances: of those to the neighbours, and of the last one.
    """
    config, k, total = token_config(x.dtype), out.knn.shape[-1], x.shape[0]
    blocks = triton.cdiv(chunk.longest, config.block_n)
    targets = x.new_empty(total, k + 1, dtype=torch.int32)
    weights = x.new_empty(total, 2, dtype=torch.float32)
    edges_bwd_kernel[(chunk.images * blocks,)](
        x,
        chunk.ok,
        chunk.offsets,
        chunk.factor,
        chunk.sigma,
        out.knn,
        out.parent,
        out.density,
        out.delta,
        *grads,
        targets,
        weights,
        x.shape[1],
        k,
        total,
        chunk.longest,
        blocks,
        *x.stride(),
        BLOCK_N=config.block_n,
        BLOCK_D=config.block_d,
        num_warps=config.num_warps,
    )
    return targets, weights


def pull_sums(
    x: Tensor, chunk: Chunk, live: Tensor, rows: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """What pulls at the seeds.

    Args:
        x: (T, D) tokens of all images.
        chunk: the images.
        live: (B,) int64 rows that count.
        rows: (B, C + 1, N) or packed (C + 1, T) float32 gradients of the distances from the seeds.
        count: C.

    Returns:
        (B, C, D) and (B, C) float32: sums over the tokens, weighed by the gradients, and of these;
        unwritten from `live` on.
    """
    config, layout, dim = merge_config(x.dtype), MaskLayout.of(rows), x.shape[1]
    sums = rows.new_empty(chunk.images, count, dim)
    mass = rows.new_empty(chunk.images, count)
    row_blocks = triton.cdiv(count, config.block_m)
    feature_blocks = triton.cdiv(dim, config.block_n)
    pull_sums_bwd_kernel[(chunk.images * row_blocks * feature_blocks,)](
        x,
        chunk.ok,
        chunk.offsets,
        chunk.factor,
        live,
        rows,
        sums,
        mass,
        dim,
        count,
        chunk.longest,
        row_blocks,
        feature_blocks,
        *x.stride(),
        layout.image,
        layout.row,
        layout.start,
        PRECISION=share_precision(x.dtype),
        BLOCK_C=config.block_m,
        BLOCK_N=config.block_d,
        BLOCK_D=config.block_n,
        # Scaled tokens take registers of their own, more than four warps have.
        num_warps=8,
        num_stages=config.num_stages,
    )
    return sums, mass
