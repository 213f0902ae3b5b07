"""What a call on kept rows needs beside its results, in one allocation."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.configs import GROUP, gram_config, host_pitch
from setok_triton.distances import KeptRows

# Bytes of a line of the caches: from elsewhere on, rows of 64 bytes would touch a sector more each.
ALIGNMENT = 128


class Workspace(NamedTuple):
    """Unwritten; vectors may be longer than they are said to be."""

    whole: Chunk  # of all images
    rows: KeptRows  # of those of a chunk, for one chunk after the other
    norm: Tensor  # (T,) float32
    scratch: Tensor  # (T,) int32


def carve(like: Tensor, parts: Sequence[tuple[torch.dtype, int]]) -> list[Tensor]:
    """Unwritten vectors of these dtypes and at least these sizes, in one allocation.

    A call on few images takes as long as its host: each allocation is microseconds.
    """
    sizes = [triton.cdiv(dtype.itemsize * size, ALIGNMENT) * ALIGNMENT for dtype, size in parts]
    memory = like.new_empty(sum(sizes), dtype=torch.uint8).split(sizes)
    return [part.view(dtype) for part, (dtype, _) in zip(memory, parts, strict=True)]


def workspace(
    x: Tensor, offsets: Tensor, longest: int, size: int, farthest: bool = False
) -> Workspace:
    """Of a call whose chunks have at most `size` images.

    Args:
        x: (T, D) tokens of all images.
        offsets: (B + 1,) int64.
        longest: most tokens of an image.
        size: images of a chunk.
        farthest: whether the largest distances are asked for.
    """
    total, images, tile = x.shape[0], offsets.shape[0] - 1, gram_config(x.dtype).block_m
    side, tokens = triton.cdiv(longest, tile), min(size, images) * longest
    tiles = min(size, images) * side
    found = carve(
        x,
        [
            (torch.int8, total),  # ok
            *[(torch.float32, images)] * 2,  # factor and sigma
            (torch.int32, images),  # how many take part
            (torch.float32, total),  # norm
            (torch.int32, total),  # scratch
            (torch.float32, tokens * host_pitch(longest)),  # distances
            (torch.float32, tokens * triton.cdiv(longest, GROUP)),  # minima
            (torch.float32, tokens * side * farthest),
            (torch.float64, tiles * (side + 1) // 2),  # sums
            *[(torch.int32, tiles)] * 2,  # counts and reach
        ],
    )
    *of_images, norm, scratch, distance, least, most, sums, counts, reach = found
    ok, factor, sigma, taking_part = of_images
    return Workspace(
        Chunk(ok, offsets, factor, sigma, taking_part, longest),
        KeptRows(distance, least, most if farthest else None, sums, counts, reach, tile),
        norm,
        scratch,
    )
