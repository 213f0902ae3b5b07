"""Kernels of the greedy clustering by a threshold of the cosine similarity (DiVT)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_kernels.selection import ascending
from setok_triton.assign import assign
from setok_triton.common import COUNTERS, FAR_INDEX, Images, Tokens, locate, locate_tile
from setok_triton.configs import adjacency_images, claim_config, dot_precision, tile_config
from setok_triton.similarity import Directions, directions, similarity_tile


@triton.jit(do_not_specialize=COUNTERS)
def adjacency_fwd_kernel(
    x,
    directions,
    p_offsets,
    p_bits,  # (images of the chunk, L, words) int32: bit j % 32 of word j // 32 of row i
    p_neighbours,  # (T,) int32 number of neighbours, initially 0
    threshold,
    L,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the neighbour bits of a tile on or above the diagonal, and of its transpose."""
    side, W = tl.cdiv(L, BLOCK), tl.cdiv(L, 32)
    at = locate(p_offsets, L, side * (side + 1) // 2)
    i_b, i_tile, start, n = at
    i_m, i_n = locate_tile(i_tile)
    if i_n * BLOCK < n:
        o_m = i_m * BLOCK + tl.arange(0, BLOCK)
        o_n = i_n * BLOCK + tl.arange(0, BLOCK)
        b_cosine = similarity_tile(x, directions, at, o_m, o_n, PRECISION, BLOCK_D)  # (M, N)
        m_self = (o_m[:, None] == o_n[None, :]) & (b_cosine > -float("inf"))
        b_near = ((b_cosine > threshold) | m_self).to(tl.int32)
        o_w, o_bit = tl.arange(0, BLOCK // 32), tl.arange(0, 32)
        p_image = p_bits + i_b * L * W
        o_right, o_down = i_n * (BLOCK // 32) + o_w, i_m * (BLOCK // 32) + o_w
        b_bits = tl.reshape(b_near, (BLOCK, BLOCK // 32, 32)) << o_bit[None, None, :]
        p_words = p_image + o_m.to(tl.int64)[:, None] * W + o_right[None, :]
        m_words = (o_m < n)[:, None] & (o_right < W)[None, :]
        tl.store(p_words, tl.sum(b_bits, axis=2), mask=m_words)
        # Integer sums do not depend on the order of the atomics.
        tl.atomic_add(p_neighbours + start + o_m, tl.sum(b_near, axis=1), mask=o_m < n)
        if i_m != i_n:
            b_mirrored = tl.reshape(b_near, (BLOCK // 32, 32, BLOCK)) << o_bit[None, :, None]
            p_mirrored = p_image + o_n.to(tl.int64)[None, :] * W + o_down[:, None]
            m_mirrored = (o_n < n)[None, :] & (o_down < W)[:, None]
            tl.store(p_mirrored, tl.sum(b_mirrored, axis=1), mask=m_mirrored)
            tl.atomic_add(p_neighbours + start + o_n, tl.sum(b_near, axis=0), mask=o_n < n)


@triton.jit(do_not_specialize=COUNTERS)
def claim_fwd_kernel(
    p_offsets,
    p_bits,  # (images of the chunk, L, words) int32
    p_left,  # (T,) int32 number of neighbours of each token; 0 once it is claimed
    p_centres,  # (B, L) int64, initially -1
    p_counts,  # (B,) int64
    L,
    BLOCK_N: tl.constexpr,
):
    """Let the unclaimed token with the most neighbours claim them all, until none is left."""
    i_b, _, start, n = locate(p_offsets, L, 1)
    o_block, W = tl.arange(0, BLOCK_N), tl.cdiv(L, 32)
    # The first pass claims nothing and finds the first centre.
    centre, count, max_neighbours = -1, -1, 1
    while max_neighbours > 0:
        count += 1
        p_row = p_bits + (i_b * L + centre) * W
        b_max = tl.zeros((BLOCK_N,), dtype=tl.int32)
        b_token = tl.full((BLOCK_N,), FAR_INDEX, dtype=tl.int32)
        for i_n in range(0, n, BLOCK_N):
            o_n = i_n + o_block
            m_n = o_n < n
            b_left = tl.load(p_left + start + o_n, mask=m_n, other=0)  # (N,)
            # (N,) words of the last centre's neighbour bits
            b_word = tl.load(p_row + o_n // 32, mask=o_n < tl.where(centre >= 0, n, 0), other=0)
            b_left = tl.where(((b_word >> (o_n % 32)) & 1) != 0, 0, b_left)
            # In a small block several lanes hold the same token: all must load before any stores.
            tl.debug_barrier()
            tl.store(p_left + start + o_n, b_left, mask=m_n)
            b_token = tl.where(b_left > b_max, o_n, b_token)
            b_max = tl.maximum(b_max, b_left)
        max_neighbours = tl.max(b_max, axis=0)
        centre = tl.min(tl.where(b_max == max_neighbours, b_token, FAR_INDEX), axis=0)
        tl.store(p_centres + i_b * L + count, centre, mask=max_neighbours > 0)
        # One lane may have stored for others that hold the same token.
        tl.debug_barrier()
    tl.store(p_counts + i_b, count)


def threshold_greedy(
    x: Tensor, valid: Tensor | None, offsets: Tensor, longest: int, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernels of `setok::threshold_greedy`.

    Args:
        x: (T, D) tokens of all images.
        valid: (T,) uint8 flags or None.
        offsets: (B + 1,) int64 offsets of the images.
        longest: maximum number of tokens of an image.
        threshold: threshold of the cosine similarity.

    Returns:
        labels (T,), centres (B, longest) and counts (B,), int64.
    """
    images = offsets.shape[0] - 1
    centres = offsets.new_full((images, longest), -1)
    counts = offsets.new_zeros(images)
    if x.shape[0] == 0:
        return offsets.new_empty(0), centres, counts
    whole = directions(x, valid, offsets, longest)
    left = x.new_zeros(x.shape[0], dtype=torch.int32)
    size = adjacency_images(images, longest)
    for first in range(0, images, size):
        cut = slice(first, first + size)
        part = offsets[first : first + size + 1]
        chunk = whole._replace(p_scaled=whole.p_scaled[cut])
        bits = adjacency(x, chunk, part, longest, threshold, left)
        claim(bits, left, part, centres[cut], counts[cut])
    centres = ascending(centres, longest)
    labels = assign(x, Images(offsets), longest, centres, counts, whole)
    return labels, centres, counts


def adjacency(
    x: Tensor,
    of: Directions,
    offsets: Tensor,
    longest: int,
    threshold: float,
    neighbours: Tensor,
) -> Tensor:
    """Return the neighbour bits (images, longest, longest / 32) int32; unwritten after an image.

    Adds the number of neighbours to `neighbours` (T,) int32. `of` are the `directions` of the
    images; the other arguments are those of `directions`.
    """
    images, config = offsets.shape[0] - 1, tile_config(x.dtype)
    words = triton.cdiv(longest, 32)
    bits = x.new_empty(images, longest, words, dtype=torch.int32)
    side = triton.cdiv(longest, config.block_m)
    tiles = side * (side + 1) // 2
    adjacency_fwd_kernel[(images * tiles,)](
        *(Tokens.of(x), of, offsets, bits, neighbours, threshold, longest),
        PRECISION=dot_precision(x.dtype),
        BLOCK=config.block_m,
        BLOCK_D=config.block_d,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return bits


def claim(bits: Tensor, left: Tensor, offsets: Tensor, centres: Tensor, counts: Tensor) -> None:
    """Write centres (images, longest) in the order of their claims, and counts (images,).

    Args:
        bits: (images, longest, words) int32 neighbour bits.
        left: (T,) int32 numbers of neighbours; 0 afterwards.
        offsets: (images + 1,) int64 offsets of the images.
        centres: output, (images, longest) int64, initially -1.
        counts: output, (images,) int64 number of centres.
    """
    images, longest, _ = bits.shape
    config = claim_config(longest)
    claim_fwd_kernel[(images,)](
        *(offsets, bits, left, centres, counts, longest),
        BLOCK_N=config.block_n,
        num_warps=config.num_warps,
    )
