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

    p_coefs: Tensor  # (T, pitch) float32 G_ci, or (T, 2 pitch) bfloat16 as of `scope_backward`
    p_total: Tensor  # (T,) float32 sum_c G_ci
    p_mass: Tensor  # (B, C) float32 sum_i G_ci
    p_sums: Tensor  # (B, C, D) float32 sum_i G_ci y_i


@triton.jit
def coefs_of(terms, token, pitch):
    """Return the pointer to the gradients of a token, or a block of pointers."""
    if terms.p_coefs.dtype.element_ty == tl.bfloat16:
        token *= 2
    return terms.p_coefs + token * pitch


@triton.jit
def load_coefs(p_coef, m_coef, pitch, CACHE):
    """Return gradients and, if they are bfloat16, their rests; otherwise the former twice."""
    b_coef = tl.load(p_coef, mask=m_coef, other=0.0, cache_modifier=CACHE)
    b_rest = b_coef
    if b_coef.dtype == tl.bfloat16:
        b_rest = tl.load(p_coef + pitch, mask=m_coef, other=0.0, cache_modifier=CACHE)
    return b_coef, b_rest


@triton.jit
def add_product(b_coef, b_rest, b_x, b_sum, PRECISION):
    """Return `b_sum` + gradients times tokens."""
    if b_coef.dtype == tl.bfloat16:
        b_sum = tl.dot(b_coef, b_x, b_sum)
        b_sum = tl.dot(b_rest, b_x, b_sum)
    else:
        b_sum = tl.dot(b_coef, b_x.to(tl.float32), b_sum, input_precision=PRECISION)
    return b_sum


@triton.jit
def token_sums(x, images, p_image, pitch, o_c, o_d, start, n, factor, PRECISION, BLOCK_N):
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
        p_coef = p_image + (o_n.to(tl.int64) * (words * pitch))[:, None] + o_c[None, :]
        m_coef = m_n[:, None] & (o_c < pitch)[None, :]
        b_coef, b_rest = load_coefs(p_coef, m_coef, pitch, "")  # (N, C)
        b_sum = add_product(tl.trans(b_coef), tl.trans(b_rest), b_x, b_sum, PRECISION)
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
    p_image = coefs_of(terms, start, pitch)
    if i_d == blocks - 1:
        words: tl.constexpr = 2 if p_image.dtype.element_ty == tl.bfloat16 else 1
        b_mass = tl.zeros((BLOCK_C,), dtype=tl.float32)
        for i_n in range(0, n, BLOCK_N):
            o_n = i_n + tl.arange(0, BLOCK_N)
            p_coef = p_image + (o_n.to(tl.int64) * (words * pitch))[:, None] + o_c[None, :]
            m_coef = (o_n < n)[:, None] & (o_c < pitch)[None, :]
            b_coef, b_rest = load_coefs(p_coef, m_coef, pitch, "")  # (N, C)
            b_whole = b_coef.to(tl.float32)
            if b_coef.dtype == tl.bfloat16:
                b_whole += b_rest.to(tl.float32)
            b_mass += tl.sum(b_whole, axis=0)
        tl.store(terms.p_mass + i_b * C + o_c, b_mass, mask=m_c)
    else:
        if factor == 1.0:
            b_sum = token_sums(
                x, images, p_image, pitch, o_c, o_d, start, n, None, PRECISION, BLOCK_N
            )
        else:
            b_sum = token_sums(
                x, images, p_image, pitch, o_c, o_d, start, n, factor, PRECISION, BLOCK_N
            )
        p_out = terms.p_sums + (i_b * C + o_c)[:, None] * x.D + o_d[None, :]
        tl.store(p_out, b_sum, mask=m_c[:, None] & (o_d < x.D)[None, :])


@triton.jit
def load_seeds(x, images, p_seed, start, n, factor, o_c, C, o_d):
    """Return the features (C, D) of seeds in range, 0 for none."""
    b_seed = tl.load(p_seed + o_c, mask=o_c < C, other=-1)  # (C,)
    m_seed = flagged(images.p_ok, start, b_seed, (b_seed >= 0) & (b_seed < n))
    p_row = x.p_x + ((start + b_seed) * x.stride_n)[:, None] + (o_d * x.stride_d)[None, :]
    b_x = tl.load(p_row, mask=m_seed[:, None] & (o_d < x.D)[None, :], other=0.0)
    return (b_x * factor).to(b_x.dtype)


@triton.jit
def load_rows(p_columns, b_row, stride_n, m_d, NARROW):
    """Return float32 features of a slice of rows, as a block (N, D) or its even and odd columns.

    The latter are the halves of words. `m_d` is None if all features exist, and NARROW says that
    offsets of rows fit into 32 bits.
    """
    b_offset = b_row.to(tl.int32 if NARROW else tl.int64) * stride_n
    p_row = p_columns + b_offset[:, None]
    b_x = tl.load(p_row) if m_d is None else tl.load(p_row, mask=m_d, other=0)
    if b_x.dtype == tl.int32:
        # A bfloat16 is the upper half of a float32.
        b_even = (b_x << 16).to(tl.float32, bitcast=True)
        columns = (b_even, (b_x & -65536).to(tl.float32, bitcast=True))
    else:
        columns = (b_x.to(tl.float32),)
    return columns


@triton.jit
def columns_of(b, own):
    """Return a block (N, D) in the form of `own`, which is that of `load_rows`."""
    if len(own) == 1:
        return (b,)
    else:
        return tl.split(tl.reshape(b, (b.shape[0], b.shape[1] // 2, 2)))


@triton.jit
def add_pair(sums, own, pair, p_columns, m_d, stride_n, factor, NARROW):
    """Return sums + w (y_i - factor x_j) for a pair (j, w) of each token, (N,) both."""
    b_other, b_w = pair
    b_w = b_w[:, None]
    other = load_rows(p_columns, b_other, stride_n, m_d, NARROW)
    b_sum = sums[0] + b_w * (own[0] - other[0] * factor)
    if len(own) == 2:
        return b_sum, sums[1] + b_w * (own[1] - other[1] * factor)
    else:
        return (b_sum,)


@triton.jit
def zeros(columns):
    """Return zeros for what `load_rows` returns."""
    b = tl.zeros_like(columns[0])
    return (b,) if len(columns) == 1 else (b, b)


@triton.jit
def scaled(columns, factor):
    """Return what `load_rows` returns, times a factor."""
    b = columns[0] * factor
    return (b,) if len(columns) == 1 else (b, columns[1] * factor)


@triton.jit
def add_scaled(sums, b_factor, columns):
    """Return sums + factor times columns, all in the form of `load_rows`."""
    b = sums[0] + b_factor * columns[0]
    return (b,) if len(sums) == 1 else (b, sums[1] + b_factor * columns[1])


@triton.jit
def store_rows(p_row, columns, m_ok, m_row):
    """Write rows in the form of `load_rows`, 0 for tokens that are not `m_ok` (N,)."""
    b = tl.where(m_ok[:, None], columns[0], 0.0)
    if len(columns) == 2:
        b_odd = tl.where(m_ok[:, None], columns[1], 0.0).to(tl.bfloat16).to(tl.int16, bitcast=True)
        b_even = b.to(tl.bfloat16).to(tl.int16, bitcast=True)
        b = (b_odd.to(tl.int32) << 16) | (b_even.to(tl.int32) & 0xFFFF)
    tl.store(p_row, b.to(p_row.dtype.element_ty), mask=m_row)


@triton.jit(do_not_specialize=COUNTERS)
def features_bwd_kernel(
    x,
    words,  # x as Tokens with two bfloat16 in an int32, or None
    images,
    edges,  # Adjacency
    p_seeds,  # (B, C) int64
    terms,  # SeedTerms, or None without a gradient of the masks
    p_out,  # (T, D), or (T, D / 2) int32 if there are words
    C,
    K,
    L,
    parts,
    PRECISION: tl.constexpr,
    ONCE: tl.constexpr,  # one block holds all seeds
    WHOLE: tl.constexpr,  # the slices are whole
    NARROW: tl.constexpr,  # offsets within an image fit into 32 bits
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
    if words is None:
        stride_n = x.stride_n
        p_columns = x.p_x + start * stride_n + (o_d * x.stride_d)[None, :]
        p_grad = p_out + start * D + o_d[None, :]
        width = D
    else:
        stride_n = words.stride_n
        o_word = i_rest // parts * (BLOCK_D // 2) + tl.arange(0, BLOCK_D // 2).to(tl.int64)
        p_columns = words.p_x + start * stride_n + o_word[None, :]
        p_grad = p_out + start * words.D + o_word[None, :]
        width = words.D
    p_seed = p_seeds + i_b * C
    o_seed = tl.arange(0, BLOCK_C)
    pitch = row_length(C)
    if terms is not None and ONCE:
        b_seeds = load_seeds(x, images, p_seed, start, n, factor, o_seed, C, o_d)
    for i_n in range(begin, end, BLOCK_N):
        o_place = i_n + tl.arange(0, BLOCK_N)
        m_n = o_place < end
        o_n = tl.load(edges.p_order + start + o_place, mask=m_n, other=0)  # (N,) tokens
        b_degree = tl.load(edges.p_degree + start + o_n, mask=m_n, other=0)  # (N,)
        b_begin = tl.load(edges.p_begin + start + o_n)  # (N,)
        p_pair = edges.p_pairs + (start + o_n) * K
        # Tokens without another entry read their last, or a pair of theirs, with weight 0.
        p_entry = edges.p_entries + start * (K + 2) + b_begin
        p_entry = tl.where(b_degree > 0, p_entry, p_pair)
        b_last = tl.maximum(b_degree - 1, 0)
        own = scaled(load_rows(p_columns, o_n, stride_n, m_d, NARROW), factor)
        sums = zeros(own)
        # Pairs without an edge, and of excluded tokens, are those of a token with itself.
        for i_k in tl.range(0, K, loop_unroll_factor=4):
            b_pair = tl.load(p_pair + i_k)  # (N,)
            sums = add_pair(sums, own, unpack(b_pair), p_columns, m_d, stride_n, factor, NARROW)
        for i_e in tl.range(0, tl.max(b_degree, axis=0), loop_unroll_factor=4):
            b_other, b_w = unpack(tl.load(p_entry + tl.minimum(i_e, b_last)))  # (N,)
            pair = b_other, tl.where(i_e < b_degree, b_w, 0.0)
            sums = add_pair(sums, own, pair, p_columns, m_d, stride_n, factor, NARROW)
        m_ok = flagged(images.p_ok, start, o_n, m_n)
        if terms is not None:
            b_mixed = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
            p_coef = coefs_of(terms, start + o_n, pitch)[:, None] + o_seed[None, :]
            if ONCE:
                m_coef = m_n[:, None] & (o_seed < pitch)[None, :]
                b_coef, b_rest = load_coefs(p_coef, m_coef, pitch, ".cg")  # (N, C)
                b_mixed = add_product(b_coef, b_rest, b_seeds, b_mixed, PRECISION)
            else:
                for i_c in range(0, C, BLOCK_C):
                    o_c = i_c + o_seed
                    b_seeds = load_seeds(x, images, p_seed, start, n, factor, o_c, C, o_d)
                    m_coef = m_n[:, None] & (o_c < pitch)[None, :]
                    b_coef, b_rest = load_coefs(p_coef + i_c, m_coef, pitch, ".cg")  # (N, C)
                    b_mixed = add_product(b_coef, b_rest, b_seeds, b_mixed, PRECISION)
            b_total = tl.load(terms.p_total + start + o_n, mask=m_n, other=0.0)  # (N,)
            sums = add_scaled(sums, b_total[:, None], own)
            sums = add_scaled(sums, -1.0, columns_of(b_mixed, own))
            # A token may be the seed of several clusters; most are the seed of none.
            b_c = tl.load(edges.p_first + start + o_n, mask=m_n, other=FAR_INDEX)  # (N,)
            while tl.min(b_c, axis=0) < C:
                m_seed = b_c < C
                o_c = i_b * C + b_c
                b_mass = tl.load(terms.p_mass + o_c, mask=m_seed, other=0.0)
                p_row = terms.p_sums + (o_c * D)[:, None] + o_d[None, :]
                m_row = m_seed[:, None] & (o_d < D)[None, :]
                b_row = tl.load(p_row, mask=m_row, other=0.0, cache_modifier=".cg")  # (N, D)
                sums = add_scaled(sums, b_mass[:, None], own)
                sums = add_scaled(sums, -1.0, columns_of(b_row, own))
                b_c = tl.load(edges.p_next + o_c, mask=m_seed, other=FAR_INDEX)
        m_row = m_n[:, None] if m_d is None else m_n[:, None] & m_d
        p_row = p_grad + (o_n.to(tl.int64) * width)[:, None]
        store_rows(p_row, scaled(sums, 2.0 * factor), m_ok, m_row)


def seed_sums(x: Tensor, chunk: Chunk, seeds: Tensor, coefs: Tensor, total: Tensor) -> SeedTerms:
    """Sum the tokens, weighted by the gradients of their distances to each seed.

    Args:
        x: (T, D) tokens of all images.
        chunk: images of the batch.
        seeds: (B, C) int64 seeds, contiguous.
        coefs: gradients of the distances to the seeds, as of `scope_backward`.
        total: (T,) float32 their sums over the seeds.

    Returns:
        Terms; masses and sums are unwritten behind the last seed.
    """
    config, dim, (images, count) = sums_config(x.dtype), x.shape[1], seeds.shape
    mass, sums = total.new_empty(images, count), total.new_empty(images, count, dim)
    terms = SeedTerms(coefs, total, mass, sums)
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
    # The offset and both strides are even if rows are whole slices.
    whole = dim % config.block_d == 0
    wide = x.dtype == torch.bfloat16 and whole and x.is_contiguous() and x.storage_offset() % 2 == 0
    words = Tokens.of(x.view(torch.int32)) if wide else None
    written = grad.view(torch.int32) if wide else grad
    features_bwd_kernel[(chunk.images * slices * parts,)](
        *(Tokens.of(x), words, Images.of(chunk), edges, seeds, terms, written),
        *(seeds.shape[1], edges.p_pairs.shape[1], chunk.longest, parts),
        PRECISION=coefficient_precision(x.dtype),
        ONCE=seeds.shape[1] <= config.block_c,
        WHOLE=whole,
        NARROW=chunk.longest * x.stride(0) < 2**31,
        **config.launch(),
    )
    return grad
