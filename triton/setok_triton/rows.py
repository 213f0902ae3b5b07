"""Lists of some tokens of each image, appended by kernels in any order."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.chunk import Chunk


class Rows(NamedTuple):
    """Some tokens of each image, in any order."""

    p_tokens: Tensor  # (T,) int32, those of an image from its start on
    p_count: Tensor  # (B,) int32; both may be longer


@triton.jit
def append(rows, i_b, start, o_n, m_n):
    """Append the tokens o_n of mask `m_n` to `Rows`."""
    p_count = rows.p_count + i_b + tl.zeros(o_n.shape, tl.int32)
    b_slot = tl.atomic_add(p_count, 1, mask=m_n, sem="relaxed")
    tl.store(rows.p_tokens + start + b_slot, o_n, mask=m_n)


def empty_rows(chunk: Chunk, number: int) -> list[Rows]:
    """Return `number` lists without tokens for the images of a chunk."""
    # Every part begins on 16 bytes, so that no kernel is compiled anew for another batch.
    images, total = (triton.cdiv(size, 4) * 4 for size in (chunk.images, chunk.ok.shape[0]))
    counts = torch.zeros(number, images, dtype=torch.int32, device=chunk.ok.device)
    tokens = counts.new_empty(number, total)
    return [Rows(*parts) for parts in zip(tokens.unbind(), counts.unbind(), strict=True)]
