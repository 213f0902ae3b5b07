"""Statistics of token channels: the blocks of a token, and the mean and scale of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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


class ChannelUnits(nn.Module):
    """Base class of modules that work on vectors in units of their channels' statistics.

    Args:
        blocks: sizes of the blocks of channels, in the order of the channels.

    Attributes:
        mean: (D,) mean of each channel, in the state dict.
        scale: (D,) scale of each channel, equal within a block, in the state dict.
        fitted: 0-dim bool, True after `fit`, in the state dict.
    """

    mean: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, blocks: Sequence[int]):
        super().__init__()
        self.blocks = tuple(blocks)
        width = sum(self.blocks)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, tokens: Tensor) -> None:
        """Set mean and scale from example tokens, by `channel_units`.

        Args:
            tokens: (S, D) example tokens, S at least 1.

        Raises:
            ValueError: the shape does not fit, or a value is not finite.
        """
        check_rows("tokens", tokens, len(self.mean))
        if len(tokens) == 0:
            raise ValueError("tokens: expected at least one row, got none")
        if not tokens.isfinite().all():
            raise ValueError("tokens: expected finite values, got NaN or infinity")
        mean, scale = channel_units(tokens, self.blocks)
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        self.fitted.fill_(True)

    def normalise(self, tokens: Tensor) -> Tensor:
        """Return (..., D) float32 tokens in units of the statistics."""
        return (tokens.float() - self.mean) / self.scale

    def restore(self, normal: Tensor) -> Tensor:
        """Return (..., D) float32 tokens in their original units, the inverse of `normalise`."""
        return normal.float() * self.scale.float() + self.mean.float()

    def check_fitted(self) -> None:
        """Raise a RuntimeError unless `fit` was called or its statistics were loaded."""
        if not self.fitted:
            raise RuntimeError(f"{type(self).__name__}: expected fit(tokens) to be called first")


def check_rows(name: str, rows: Tensor, width: int, count: int | None = None) -> None:
    """Raise a ValueError unless `rows` is a floating-point (S, width), or (count, width)."""
    if (
        rows.dim() != 2
        or rows.shape[1] != width
        or not rows.is_floating_point()
        or count not in (None, len(rows))
    ):
        shape = f"({'S' if count is None else count}, {width})"
        got = f"{rows.dtype} {tuple(rows.shape)}"
        raise ValueError(f"{name}: expected a floating-point {shape}, got {got}")
