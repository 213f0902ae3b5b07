"""The order of a picture's tokens in the text, where it is not the picture's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pictures_before(input_ids: Tensor, image_token_id: int, image_start_id: int) -> Tensor:
    """For each picture that the assistant draws the last one before it in its row.

    Args:
        input_ids: (B, L) with one `image_token_id` for each of M pictures, behind an
            `image_start_id` where the assistant draws it.
        image_token_id: stands for a picture.
        image_start_id: where a picture that is drawn begins.

    Returns:
        (M,) int64 numbers of pictures; -1 for none, and for pictures that are given.
    """
    rows, places = (input_ids == image_token_id).nonzero().unbind(1)
    number = torch.arange(len(rows), device=rows.device)
    follows = torch.zeros_like(rows, dtype=torch.bool)
    follows[1:] = rows[1:] == rows[:-1]
    drawn = input_ids[rows, (places - 1).clamp(min=0)] == image_start_id
    return torch.where(follows & drawn, number - 1, -1)


def follow(tokens: Tensor, cu_seqlens: Tensor, before: Tensor, blocks: Sequence[int]) -> Tensor:
    """An order in which the tokens of a picture come as those do that they are most like.

    An edit changes little, but what is left moves in any order by places or sizes. In this one a
    token that stays comes after the one that it came after before.

    Args:
        tokens: (S, D) of all pictures, in units in which blocks of channels are alike.
        cu_seqlens: (M + 1,) offsets of the pictures.
        before: (M,) picture that each one shall follow; -1 for none, which keeps its own order.
        blocks: sizes of the blocks of channels; all count the same.

    Returns:
        (S,) int64, a permutation within pictures; tokens that are most like the same one keep
        their order.
    """
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    if not len(tokens) or not bool((before >= 0).any()):
        return torch.arange(len(tokens), device=tokens.device)
    sizes = torch.tensor(blocks, device=tokens.device)
    even = tokens.float() / sizes.float().sqrt().repeat_interleave(sizes)
    column = torch.arange(int(lengths.max()), device=tokens.device)
    inside = column < lengths[:, None]  # (M, R)
    index = torch.where(inside, starts[:, None] + column, 0)
    lines = even[index]  # (M, R, D)
    leader = before.clamp(min=0)
    apart = torch.cdist(lines, lines[leader]).masked_fill(~inside[leader][:, None], torch.inf)
    nearest = torch.where(before[:, None] >= 0, apart.argmin(-1), column)
    order = nearest.masked_fill(~inside, len(column)).argsort(dim=1, stable=True)  # (M, R)
    return index.gather(1, order)[inside]
