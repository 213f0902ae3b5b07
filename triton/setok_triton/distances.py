"""Rows of distances of a chunk of images, for those few enough tokens to keep them."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.common import COUNTERS, Images, Tokens, distance_tile, locate, locate_tile
from setok_triton.configs import GROUP, dot_precision, most_registers, tile_config


@triton.jit(do_not_specialize=COUNTERS)
def distances_fwd_kernel(
    x,
    images,  # without distances
    p_distance,  # (images of the chunk, L, L) float32
    p_least,  # (images of the chunk, L, groups) float32 minima of groups of columns
    p_most,  # (images of the chunk, L, tiles) float32 largest finite of a tile, or None
    L,
    INCLUDE_SELF: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile on or above the diagonal, written to its mirror image as well."""
    side = tl.cdiv(L, BLOCK)
    at = locate(images.p_offsets, L, side * (side + 1) // 2)
    i_b, i_tile, _, n = at
    i_m, i_n = locate_tile(i_tile)
    if i_n * BLOCK < n:
        o_m = i_m * BLOCK + tl.arange(0, BLOCK)
        o_n = i_n * BLOCK + tl.arange(0, BLOCK)
        factor = tl.load(images.p_factor + i_b)
        b_d = distance_tile(x, images, at, o_m, o_n, factor, L, PRECISION, BLOCK_D)  # (M, N)
        p_image = p_distance + i_b * L * L
        m_tile = (o_m < n)[:, None] & (o_n < n)[None, :]
        o_m, o_n = o_m.to(tl.int64), o_n.to(tl.int64)
        tl.store(p_image + o_m[:, None] * L + o_n[None, :], b_d, mask=m_tile)
        if i_m != i_n:
            tl.store(p_image + o_n[None, :] * L + o_m[:, None], b_d, mask=m_tile)

        GROUPS: tl.constexpr = BLOCK // GROUP
        groups, o_g = tl.cdiv(L, GROUP), tl.arange(0, GROUPS)
        b_near = b_d
        if not INCLUDE_SELF:
            b_near = tl.where(o_m[:, None] == o_n[None, :], float("inf"), b_d)
        p_least += i_b * L * groups
        b_rows = tl.min(tl.reshape(b_near, (BLOCK, GROUPS, GROUP)), axis=2)  # (M, groups)
        p_rows = p_least + o_m[:, None] * groups + (i_n * GROUPS + o_g)[None, :]
        tl.store(p_rows, b_rows, mask=(o_m < n)[:, None] & (i_n * GROUPS + o_g < groups)[None, :])
        if i_m != i_n:
            b_columns = tl.min(tl.reshape(b_near, (GROUPS, GROUP, BLOCK)), axis=1)  # (groups, N)
            p_columns = p_least + o_n[None, :] * groups + (i_m * GROUPS + o_g)[:, None]
            tl.store(p_columns, b_columns, mask=(o_n < n)[None, :])
        if p_most is not None:
            b_far = tl.where(b_d < float("inf"), b_d, 0.0)
            p_most += i_b * L * side
            tl.store(p_most + o_m * side + i_n, tl.max(b_far, axis=1), mask=o_m < n)
            if i_m != i_n:
                tl.store(p_most + o_n * side + i_m, tl.max(b_far, axis=0), mask=o_n < n)


@dataclass(frozen=True)
class KeptRows:
    """Rows of distances of the images of a chunk, and what of each is known without reading it.

    What stands behind the last token of an image is unwritten.

    Attributes:
        distances: (images, longest, longest) squared distances, infinite where either token takes
            no part.
        least: (images, longest, groups) minima of each GROUP columns.
        most: (images, longest, tiles) largest finite distance of each tile; None where not asked.
        tile: columns of each.
    """

    distances: Tensor
    least: Tensor
    most: Tensor | None
    tile: int


def distances(
    x: Tensor, norm: Tensor, chunk: Chunk, include_self: bool, farthest: bool = False
) -> KeptRows:
    """Makes the rows of a chunk.

    Args:
        x: (T, D) tokens of all images.
        norm: (T,) their squared norms.
        chunk: the images.
        include_self: the minima count the token itself.
        farthest: whether the largest are asked for.
    """
    config, longest = tile_config(x.dtype), chunk.longest
    side = triton.cdiv(longest, config.block_m)
    tiles = side * (side + 1) // 2

    def kept(*columns):
        return x.new_empty(chunk.images, longest, *columns, dtype=torch.float32)

    rows, least = kept(longest), kept(triton.cdiv(longest, GROUP))
    most = kept(side) if farthest else None
    distances_fwd_kernel[(chunk.images * tiles,)](
        *(Tokens.of(x), Images.of(chunk, norm), rows, least, most, longest),
        INCLUDE_SELF=include_self,
        GROUP=GROUP,
        PRECISION=dot_precision(x.dtype),
        BLOCK=config.block_m,
        BLOCK_D=config.block_d,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        maxnreg=most_registers(x) if config.num_warps == 4 else None,
    )
    return KeptRows(rows, least, most, config.block_m)
