"""Rows of distances of a chunk of images, for those few enough tokens to keep them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.common import distance_tile, locate, locate_tile
from setok_triton.configs import dot_precision, tile_config


@triton.jit(do_not_specialize=["D", "L"])
def distances_fwd_kernel(
    p_x,
    p_norm,
    p_ok,
    p_offsets,
    p_factor,
    p_distance,  # (images of the chunk, L, L) float32
    D,
    L,
    blocks_per_image,
    stride_n,
    stride_d,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile on or above the diagonal, written to its mirror image as well."""
    i_b, i_tile, start, n = locate(p_offsets, L, blocks_per_image)
    i_m, i_n = locate_tile(i_tile)
    if i_n * BLOCK < n:
        o_m = i_m * BLOCK + tl.arange(0, BLOCK)
        o_n = i_n * BLOCK + tl.arange(0, BLOCK)
        factor = tl.load(p_factor + i_b)
        b_d = distance_tile(
            p_x,
            p_norm,
            p_ok,
            p_distance,
            start,
            i_b,
            o_m,
            o_n,
            n,
            factor,
            D,
            L,
            stride_n,
            stride_d,
            False,
            PRECISION,
            BLOCK_D,
        )
        p_image = p_distance + i_b * L * L
        m_tile = (o_m < n)[:, None] & (o_n < n)[None, :]
        o_m, o_n = o_m.to(tl.int64), o_n.to(tl.int64)
        tl.store(p_image + o_m[:, None] * L + o_n[None, :], b_d, mask=m_tile)
        if i_m != i_n:
            tl.store(p_image + o_n[None, :] * L + o_m[:, None], b_d, mask=m_tile)


def distances(x: Tensor, norm: Tensor, chunk: Chunk) -> Tensor:
    """(images, longest, longest) squared distances of the chunk.

    Infinite where either token takes no part; unwritten behind the last token of an image.
    """
    config = tile_config(x.dtype)
    out = x.new_empty(chunk.images, chunk.longest, chunk.longest, dtype=torch.float32)
    side = triton.cdiv(chunk.longest, config.block_m)
    tiles = side * (side + 1) // 2
    distances_fwd_kernel[(chunk.images * tiles,)](
        x,
        norm,
        chunk.ok,
        chunk.offsets,
        chunk.factor,
        out,
        x.shape[1],
        chunk.longest,
        tiles,
        *x.stride(),
        PRECISION=dot_precision(x.dtype),
        BLOCK=config.block_m,
        BLOCK_D=config.block_d,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out
