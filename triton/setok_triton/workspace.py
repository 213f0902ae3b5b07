"""Temporary buffers of a call with distance rows, in one allocation."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from setok_triton.chunk import Chunk
from setok_triton.configs import GROUP, gram_config, host_pitch
from setok_triton.distances import KeptRows

# Bytes of a cache line: unaligned rows of 64 bytes would each touch one more sector.
ALIGNMENT = 128


class Workspace(NamedTuple):
    """Uninitialised buffers; vectors may be longer than documented."""

    whole: Chunk  # all images
    rows: KeptRows  # rows of one chunk, reused by the next
    norm: Tensor  # (T,) float32 squared norms
    scratch: Tensor  # (T,) int32


def carve(like: Tensor, parts: Sequence[tuple[torch.dtype, int]]) -> list[Tensor]:
    """Return uninitialised vectors of at least these sizes in one allocation.

    The host limits calls on few images, and each allocation costs it microseconds.
    """
    sizes = [triton.cdiv(dtype.itemsize * size, ALIGNMENT) * ALIGNMENT for dtype, size in parts]
    memory = like.new_empty(sum(sizes), dtype=torch.uint8).split(sizes)
    return [part.view(dtype) for part, (dtype, _) in zip(memory, parts, strict=True)]


def workspace(
    x: Tensor, offsets: Tensor, longest: int, size: int, farthest: bool = False
) -> Workspace:
    """Return the buffers of a call whose chunks have at most `size` images.

    Args:
        x: (T, D) tokens of all images.
        offsets: (B + 1,) int64 offsets of the images.
        longest: maximum number of tokens of an image.
        size: number of images of a chunk.
        farthest: flag: also keep the maximum distances.
    """
    total, images, tile = x.shape[0], offsets.shape[0] - 1, gram_config(x.dtype).block_m
    side, tokens = triton.cdiv(longest, tile), min(size, images) * longest
    tiles = min(size, images) * side
    found = carve(
        x,
        [
            (torch.int8, total),  # ok
            *[(torch.float32, images)] * 2,  # factor and sigma
            (torch.int32, images),  # num_ok
            (torch.float32, total),  # norm
            (torch.int32, total),  # scratch
            (torch.float32, tokens * host_pitch(longest)),  # distances
            (torch.float32, tokens * triton.cdiv(longest, GROUP)),  # minima
            (torch.float32, tokens * side * farthest),
            (torch.float64, tiles * (side + 1) // 2),  # sums
            *[(torch.int32, tiles)] * 2,  # counts and reach
        ],
    )
    ok, factor, sigma, num_ok, norm, scratch, distance, minima, maxima, sums, counts, reach = found
    return Workspace(
        Chunk(ok, offsets, factor, sigma, num_ok, longest),
        KeptRows(distance, minima, maxima if farthest else None, sums, counts, reach, tile),
        norm,
        scratch,
    )
