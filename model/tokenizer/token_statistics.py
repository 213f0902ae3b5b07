"""Statistics of token channels: the blocks of a token, and the mean and scale of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from setokim.tokenizer.shapelets import POSE

# A block of channels with a smaller root mean square is constant up to rounding.
_FLAT = 1e-6


def token_blocks(token_dim: int, outline_dim: int) -> tuple[int, int, int, int]:
    """Return the numbers of channels of a token's content, centre, scale and shape, in order."""
    return token_dim - outline_dim, 2, POSE - 2, outline_dim - POSE


def channel_units(tokens: Tensor, blocks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Compute mean and scale of the channels.

    The scale of a block is the root mean square of its centred channels. One scale for a whole
    block keeps weak channels weak; a constant block has scale 1.

    Args:
        tokens: (S, token_dim), S of at least 1.
        blocks: numbers of channels of the blocks, each with a single scale.

    Returns:
        Mean and scale, (token_dim,) float64 each.
    """
    tokens = tokens.double()
    mean = tokens.mean(0)
    parts = (tokens - mean).split(tuple(blocks), dim=1)
    scale = torch.cat([part.square().mean().sqrt().expand(part.shape[1]) for part in parts])
    return mean, torch.where(scale > _FLAT, scale, 1.0)
