"""Buffers of a clustering: those of a call with distance rows, and those kept for the gradients."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from setok_kernels.saved import SAVED_ALIGNMENT, saved_bytes
from setok_triton.chunk import Chunk
from setok_triton.configs import GROUP, gram_config, host_pitch
from setok_triton.distances import KeptRows

# Bytes of a cache line: unaligned rows of 64 bytes would each touch one more sector.
ALIGNMENT = SAVED_ALIGNMENT


class Workspace(NamedTuple):
    """Uninitialised buffers; vectors may be longer than documented."""

    whole: Chunk  # all images
    rows: KeptRows  # rows of one chunk, reused by the next
    norm: Tensor  # (T,) float32 squared norms
    scratch: Tensor  # (T,) int32


class Saved(NamedTuple):
    """What the backward pass needs of a forward pass; vectors may be longer than documented."""

    ok: Tensor  # (T,) int8 flags
    factor: Tensor  # (B,) float32 powers of two that scale the tokens into range
    sigma: Tensor  # (B,) float32 scales of the squared distances
    norm: Tensor  # (T,) float32 squared norms
    target: Tensor  # (T,) int32 token of delta: the parent, without one the farthest token

    @classmethod
    def of(cls, memory: Tensor, total: int, images: int) -> "Saved":
        """Return the parts of `memory`, (`saved_bytes(total, images)`,) uint8."""
        return cls(*_split(memory, _saved_parts(total, images)))

    @classmethod
    def empty(cls, x: Tensor, offsets: Tensor) -> tuple["Saved", Tensor]:
        """Return uninitialised parts for (T, D) tokens, and their memory."""
        total, images = x.shape[0], offsets.shape[0] - 1
        memory = x.new_empty(saved_bytes(total, images), dtype=torch.uint8)
        return cls.of(memory, total, images), memory


def _saved_parts(total: int, images: int) -> list[tuple[torch.dtype, int]]:
    vectors = [(torch.float32, total), (torch.int32, total)]
    return [(torch.int8, total), *[(torch.float32, images)] * 2, *vectors]


def carve(like: Tensor, parts: Sequence[tuple[torch.dtype, int]]) -> list[Tensor]:
    """Return uninitialised vectors of at least these sizes in one allocation.

    The host limits calls on few images, and each allocation costs it microseconds.
    """
    return _split(like.new_empty(sum(_sizes(parts)), dtype=torch.uint8), parts)


def _split(memory: Tensor, parts: Sequence[tuple[torch.dtype, int]]) -> list[Tensor]:
    found = memory.split(_sizes(parts))
    return [part.view(dtype) for part, (dtype, _) in zip(found, parts, strict=True)]


def _sizes(parts: Sequence[tuple[torch.dtype, int]]) -> list[int]:
    return [triton.cdiv(dtype.itemsize * size, ALIGNMENT) * ALIGNMENT for dtype, size in parts]


def workspace(
    x: Tensor,
    offsets: Tensor,
    longest: int,
    size: int,
    saved: Saved | None = None,
    farthest: bool = False,
) -> Workspace:
    """Return the buffers of a call whose chunks have at most `size` images.

    Args:
        x: (T, D) tokens of all images.
        offsets: (B + 1,) int64 offsets of the images.
        longest: maximum number of tokens of an image.
        size: number of images of a chunk.
        saved: buffers that outlive the call, in place of its own.
        farthest: flag: also keep the maximum distances.
    """
    total, images, tile = x.shape[0], offsets.shape[0] - 1, gram_config(x.dtype).block_m
    side, tokens = triton.cdiv(longest, tile), min(size, images) * longest
    tiles = min(size, images) * side
    found = carve(
        x,
        [
            *(_saved_parts(total, images)[:4] if saved is None else []),  # ok to norm
            (torch.int32, images),  # num_ok
            (torch.int32, total),  # scratch
            (torch.float32, tokens * host_pitch(longest)),  # distances
            (torch.float32, tokens * triton.cdiv(longest, GROUP)),  # minima
            (torch.float32, tokens * side * farthest),
            (torch.float64, tiles * (side + 1) // 2),  # sums
            *[(torch.int32, tiles)] * 2,  # counts and reach
        ],
    )
    if saved is not None:
        found = [*saved[:4], *found]
    ok, factor, sigma, norm, num_ok, scratch, distance, minima, maxima, sums, counts, reach = found
    return Workspace(
        Chunk(ok, offsets, factor, sigma, num_ok, longest),
        KeptRows(distance, minima, maxima if farthest else None, sums, counts, reach, tile),
        norm,
        scratch,
    )
