"""Kernels of the gradient of the features from gradients of squared distances."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.adjacency import Adjacency, unpack
from setok_triton.chunk import Chunk
from setok_triton.common import COUNTERS, FAR_INDEX, Images, Tokens, flagged, locate
from setok_triton.configs import coefficient_precision, slice_config, sums_config
from setok_triton.scope_backward import row_length, rows_in_use


class SeedTerms(NamedTuple):
    """Terms of the gradient from the distances to the seeds, whose gradients are G_ci."""

    p_pulls: Tensor  # (T, pitch) float32 G_ci, or (T, 2 pitch) bfloat16 as of `scope_backward`
    p_total: Tensor  # (T,) float32 sum_c G_ci
    p_mass: Tensor  # (B, C) float32 sum_i G_ci
    p_sums: Tensor  # (B, C, D) float32 sum_i G_ci y_i


@triton.jit
def pulls_of(terms, token, pitch):
    """Return the pointer to the gradients of a token, or a block of pointers."""
    if terms.p_pulls.dtype.element_ty == tl.bfloat16:
        token *= 2
    return terms.p_pulls + token * pitch


@triton.jit
def load_pulls(p_pull, m_pull, pitch):
    """Return gradients and, in bfloat16, their rests; otherwise None. Each is read once."""
    b_pull = tl.load(p_pull, mask=m_pull, other=0.0, cache_modifier=".cg")
    b_rest = None
    if b_pull.dtype == tl.bfloat16:
        b_rest = tl.load(p_pull + pitch, mask=m_pull, other=0.0, cache_modifier=".cg")
    return b_pull, b_rest


@triton.jit
def add_product(b_pull, b_rest, b_x, b_sum, PRECISION):
    """Return `b_sum` + gradients times tokens."""
    if b_rest is None:
        b_sum = tl.dot(b_pull, b_x.to(tl.float32), b_sum, input_precision=PRECISION)
    else:
        b_sum = tl.dot(b_pull, b_x, b_sum)
        b_sum = tl.dot(b_rest, b_x, b_sum)
    return b_sum


@triton.jit
def pulled(x, images, p_image, pitch, o_c, o_d, start, n, factor, PRECISION, BLOCK_N):
    """Return the sums (C, D) of gradients times tokens; without a factor the tokens as loaded."""
    b_sum = tl.zeros((o_c.shape[0], o_d.shape[0]), dtype=tl.float32)
    m_d = (o_d < x.D)[None, :]
    for i_n in range(0, n, BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = o_n < n
        m_ok = flagged(images.p_ok, start, o_n, m_n)
        p_row = x.p_x + ((start + o_n) * x.stride_n)[:, None] + (o_d * x.stride_d)[None, :]
        b_x = tl.load(p_row, mask=m_ok[:, None] & m_d, other=0.0)  # (N, D)
        if factor is not None:
            b_x = (b_x * factor).to(b_x.dtype)
        words: tl.constexpr = 2 if p_image.dtype.element_ty == tl.bfloat16 else 1
        p_pull = p_image + (o_n.to(tl.int64) * (words * pitch))[:, None] + o_c[None, :]
        m_pull = m_n[:, None] & (o_c < pitch)[None, :]
        b_pull, b_rest = load_pulls(p_pull, m_pull, pitch)  # (N, C)
        b_pull = tl.trans(b_pull)
        if b_rest is not None:
            b_rest = tl.trans(b_rest)
        b_sum = add_product(b_pull, b_rest, b_x, b_sum, PRECISION)
    return b_sum


@triton.jit(do_not_specialize=COUNTERS)
def seed_sums_bwd_kernel(
    x,
    images,
    p_seeds,  # (B, C) int64
    terms,  # SeedTerms
    C,
    L,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write sum_i G_ci y_i for a block of seeds and one of features; after these sum_i G_ci."""
    blocks = tl.cdiv(x.D, BLOCK_D) + 1
    i_b, i_tile, start, n = locate(images.p_offsets, L, tl.cdiv(C, BLOCK_C) * blocks)
    i_c, i_d = i_tile // blocks * BLOCK_C, i_tile % blocks
    o_c, o_d = i_c + tl.arange(0, BLOCK_C), i_d * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    m_c = o_c < C
    n = tl.where(i_c < rows_in_use(p_seeds, i_b, C), n, 0)
    pitch, factor = row_length(C), tl.load(images.p_factor + i_b)
    p_image = pulls_of(terms, start, pitch)
    if i_d == blocks - 1:
        words: tl.constexpr = 2 if p_image.dtype.element_ty == tl.bfloat16 else 1
        b_mass = tl.zeros((BLOCK_C,), dtype=tl.float32)
        for i_n in range(0, n, BLOCK_N):
            o_n = i_n + tl.arange(0, BLOCK_N)
            p_pull = p_image + (o_n.to(tl.int64) * (words * pitch))[:, None] + o_c[None, :]
            m_pull = (o_n < n)[:, None] & (o_c < pitch)[None, :]
            b_pull, b_rest = load_pulls(p_pull, m_pull, pitch)  # (N, C)
            b_pull = b_pull.to(tl.float32)
            if b_rest is not None:
                b_pull += b_rest.to(tl.float32)
            b_mass += tl.sum(b_pull, axis=0)
        tl.store(terms.p_mass + i_b * C + o_c, b_mass, mask=m_c)
    else:
        if factor == 1.0:
            b_sum = pulled(x, images, p_image, pitch, o_c, o_d, start, n, None, PRECISION, BLOCK_N)
        else:
            b_sum = pulled(
                x, images, p_image, pitch, o_c, o_d, start, n, factor, PRECISION, BLOCK_N
            )
        p_out = terms.p_sums + (i_b * C + o_c)[:, None] * x.D + o_d[None, :]
        tl.store(p_out, b_sum, mask=m_c[:, None] & (o_d < x.D)[None, :])


@triton.jit
def load_seeds(x, images, p_seed, start, factor, o_c, C, o_d):
    """Return the features (C, D) of seeds in range, 0 for none."""
    b_seed = tl.load(p_seed + o_c, mask=o_c < C, other=-1)  # (C,)
    m_seed = flagged(images.p_ok, start, b_seed, b_seed >= 0)
    p_row = x.p_x + ((start + b_seed) * x.stride_n)[:, None] + (o_d * x.stride_d)[None, :]
    b_x = tl.load(p_row, mask=m_seed[:, None] & (o_d < x.D)[None, :], other=0.0)
    return (b_x * factor).to(b_x.dtype)


@triton.jit
def load_slice(p_row, m_d):
    """Return float32 features of a slice; `m_d` is None if all of them exist."""
    b_x = tl.load(p_row) if m_d is None else tl.load(p_row, mask=m_d, other=0.0)
    return b_x.to(tl.float32)


@triton.jit
def add_pair(b_sum, b_y, b_pair, p_columns, m_d, stride_n, factor):
    """Return `b_sum` + w (y_i - y_j) for a pair (N,) of each token."""
    b_other, b_w = unpack(b_pair)
    b_x = load_slice(p_columns + (b_other.to(tl.int64) * stride_n)[:, None], m_d)  # (N, D)
    return b_sum + b_w[:, None] * (b_y - b_x * factor)


@triton.jit(do_not_specialize=COUNTERS)
def features_bwd_kernel(
    x,
    images,
    edges,  # Adjacency
    p_seeds,  # (B, C) int64
    terms,  # SeedTerms, or None without a gradient of the masks
    p_out,  # (T, D)
    C,
    K,
    L,
    parts,
    PRECISION: tl.constexpr,
    ONCE: tl.constexpr,  # one block holds all seeds
    WHOLE: tl.constexpr,  # the slices are whole
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the gradients of a part of the tokens of an image, for a slice of their features.

    The gradient of w ||y_i - y_j||^2 by y_i is 2 w (y_i - y_j), for both ends of a pair. y are the
    tokens in range, factor times x. The slice of an image stays in L1, from which its rows are
    gathered; what is read once passes by L1.
    """
    D, slices = x.D, tl.cdiv(x.D, BLOCK_D)
    i_b, i_rest, start, n = locate(images.p_offsets, L, slices * parts)
    o_d = i_rest // parts * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    m_d = None if WHOLE else (o_d < D)[None, :]
    # Parts are whole blocks.
    size = tl.cdiv(tl.cdiv(n, BLOCK_N), parts) * BLOCK_N
    begin = i_rest % parts * size
    end = tl.minimum(begin + size, n)
    factor = tl.load(images.p_factor + i_b)
    p_columns = x.p_x + start * x.stride_n + (o_d * x.stride_d)[None, :]
    p_seed = p_seeds + i_b * C
    o_seed = tl.arange(0, BLOCK_C)
    pitch = row_length(C)
    if terms is not None and ONCE:
        b_seeds = load_seeds(x, images, p_seed, start, factor, o_seed, C, o_d)
    for i_n in range(begin, end, BLOCK_N):
        o_place = i_n + tl.arange(0, BLOCK_N)
        m_n = o_place < end
        o_n = tl.load(edges.p_order + start + o_place, mask=m_n, other=0)  # (N,) tokens
        b_degree = tl.load(edges.p_degree + start + o_n, mask=m_n, other=0)  # (N,)
        p_entry = edges.p_entries + start * (K + 2) + tl.load(edges.p_begin + start + o_n)
        p_pair = edges.p_pairs + (start + o_n) * K
        b_y = load_slice(p_columns + (o_n.to(tl.int64) * x.stride_n)[:, None], m_d)  # (N, D)
        b_y *= factor
        b_sum = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
        # Pairs without an edge, and of excluded tokens, are those of a token with itself.
        for i_k in tl.range(0, K, loop_unroll_factor=4):
            b_pair = tl.load(p_pair + i_k)  # (N,)
            b_sum = add_pair(b_sum, b_y, b_pair, p_columns, m_d, x.stride_n, factor)
        for i_e in tl.range(0, tl.max(b_degree, axis=0), loop_unroll_factor=4):
            m_pair = i_e < b_degree
            b_pair = tl.load(p_entry + i_e, mask=m_pair, other=0)
            b_pair = tl.where(m_pair, b_pair, o_n)
            b_sum = add_pair(b_sum, b_y, b_pair, p_columns, m_d, x.stride_n, factor)
        m_ok = flagged(images.p_ok, start, o_n, m_n)
        if terms is not None:
            b_mixed = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
            p_pull = pulls_of(terms, start + o_n, pitch)[:, None] + o_seed[None, :]
            for i_c in range(0, C, BLOCK_C):
                if not ONCE:
                    b_seeds = load_seeds(x, images, p_seed, start, factor, i_c + o_seed, C, o_d)
                m_pull = m_n[:, None] & (i_c + o_seed < pitch)[None, :]
                b_pull, b_rest = load_pulls(p_pull + i_c, m_pull, pitch)  # (N, C)
                b_mixed = add_product(b_pull, b_rest, b_seeds, b_mixed, PRECISION)
            b_total = tl.load(terms.p_total + start + o_n, mask=m_n, other=0.0)  # (N,)
            b_sum += b_total[:, None] * b_y - b_mixed
            # A token may be the seed of several clusters; most are the seed of none.
            b_c = tl.load(edges.p_first + start + o_n, mask=m_n, other=FAR_INDEX)  # (N,)
            while tl.min(b_c, axis=0) < C:
                m_seed = b_c < C
                o_c = i_b * C + b_c
                b_mass = tl.load(terms.p_mass + o_c, mask=m_seed, other=0.0)
                p_row = terms.p_sums + (o_c * D)[:, None] + o_d[None, :]
                m_row = m_seed[:, None] & (o_d < D)[None, :]
                b_row = tl.load(p_row, mask=m_row, other=0.0, cache_modifier=".cg")  # (N, D)
                b_sum += b_mass[:, None] * b_y - b_row
                b_c = tl.load(edges.p_next + o_c, mask=m_seed, other=FAR_INDEX)
        b_grad = tl.where(m_ok[:, None], 2.0 * b_sum * factor, 0.0)
        p_grad = p_out + ((start + o_n) * D)[:, None] + o_d[None, :]
        tl.store(p_grad, b_grad.to(p_out.dtype.element_ty), mask=m_n[:, None] & (o_d < D)[None, :])


def seed_sums(x: Tensor, chunk: Chunk, seeds: Tensor, pulls: Tensor, total: Tensor) -> SeedTerms:
    """Sum the tokens, weighted by the gradients of their distances to each seed.

    Args:
        x: (T, D) tokens of all images.
        chunk: images of the batch.
        seeds: (B, C) int64 seeds, contiguous.
        pulls: gradients of the distances to the seeds, as of `scope_backward`.
        total: (T,) float32 their sums over the seeds.

    Returns:
        Terms; masses and sums are unwritten behind the last seed.
    """
    config, dim, (images, count) = sums_config(x.dtype), x.shape[1], seeds.shape
    mass, sums = total.new_empty(images, count), total.new_empty(images, count, dim)
    terms = SeedTerms(pulls, total, mass, sums)
    row_blocks = triton.cdiv(count, config.block_m)
    feature_blocks = triton.cdiv(dim, config.block_n) + 1
    seed_sums_bwd_kernel[(images * row_blocks * feature_blocks,)](
        *(Tokens.of(x), Images.of(chunk), seeds, terms, count, chunk.longest),
        PRECISION=coefficient_precision(x.dtype),
        **config.launch("BLOCK_C", "BLOCK_D", "BLOCK_N"),
    )
    return terms


def features(
    x: Tensor, chunk: Chunk, edges: Adjacency, seeds: Tensor, terms: SeedTerms | None
) -> Tensor:
    """Return the sum of all gradient contributions to each token (T, D), in the dtype of x.

    Args:
        x: (T, D) tokens of all images.
        chunk: images of the batch.
        edges: pairs of the tokens.
        seeds: (B, C) int64 seeds, contiguous.
        terms: terms of the distances to the seeds, or None.
    """
    config, dim = slice_config(x.dtype), x.shape[1]
    grad = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    slices = triton.cdiv(dim, config.block_d)
    parts = config.parts(chunk.images * slices, chunk.longest)
    features_bwd_kernel[(chunk.images * slices * parts,)](
        *(Tokens.of(x), Images.of(chunk), edges, seeds, terms, grad),
        *(seeds.shape[1], edges.p_pairs.shape[1], chunk.longest, parts),
        PRECISION=coefficient_precision(x.dtype),
        ONCE=seeds.shape[1] <= config.block_c,
        WHOLE=dim % config.block_d == 0,
        **config.launch(),
    )
    return grad
