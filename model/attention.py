"""Attention within sets: patches of one cluster, tokens of one image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SetAttention(nn.Module):
    """Multi-head attention in which a query sees only what it is allowed to.

    Args:
        width: of queries and results.
        heads: number of heads; divides `width`.
        context_width: of what is attended to; None for `width`.

    Raises:
        ValueError: `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int, context_width: int | None = None):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width or width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, context: Tensor, allowed: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Attends.

        Args:
            x: (B, N, width) queries.
            context: (B, M, context_width).
            allowed: (B, N, M) or (B, 1, M) bool; a query that may see nothing gets 0.
            bias: (B, heads, N, M) added to the scores, or None.

        Returns:
            (B, N, width).
        """
        split = (self.heads, x.shape[-1] // self.heads)
        query = self.query(x).unflatten(-1, split).transpose(1, 2)  # (B, heads, N, d)
        key, value = self.key_value(context).unflatten(-1, (2, *split)).unbind(-3)
        key, value = key.transpose(1, 2), value.transpose(1, 2)  # (B, heads, M, d)
        # A softmax over nothing is NaN, on its way back too: such a query sees everything, and what
        # it saw is dropped.
        blind = ~allowed.any(-1, keepdim=True)
        mask = (allowed | blind)[:, None]
        if bias is not None:
            mask = bias.masked_fill(~mask, -torch.inf).to(query.dtype)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        seen = seen.transpose(1, 2).flatten(-2).masked_fill(blind, 0)
        return self.out(seen)


class Block(nn.Module):
    """A pre-norm transformer layer over sets, with attention to a second set where it has one.

    Args:
        width: of the tokens.
        heads: number of heads.
        mlp_ratio: width of the MLP over `width`.
        context_width: of the second set, or None for no second set.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, context_width: int | None = None
    ):
        super().__init__()
        self.norm_self = nn.LayerNorm(width)
        self.attend_self = SetAttention(width, heads)
        self.norm_cross = self.attend_cross = None
        if context_width is not None:
            self.norm_cross = nn.LayerNorm(width)
            self.attend_cross = SetAttention(width, heads, context_width)
        self.norm_mlp = nn.LayerNorm(width)
        hidden = int(mlp_ratio * width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(
        self,
        x: Tensor,
        allowed: Tensor,
        context: Tensor | None = None,
        context_allowed: Tensor | None = None,
        context_bias: Tensor | None = None,
    ) -> Tensor:
        """One layer.

        Args:
            x: (B, N, width).
            allowed: (B, N, N) or (B, 1, N) bool, what attends to what.
            context: (B, M, context_width), the second set.
            context_allowed: (B, N, M) or (B, 1, M) bool.
            context_bias: (B, heads, N, M) added to the scores of the second set, or None.

        Returns:
            (B, N, width).
        """
        if self.attend_cross is not None:
            queries = self.norm_cross(x)
            x = x + self.attend_cross(queries, context, context_allowed, context_bias)
        normed = self.norm_self(x)
        x = x + self.attend_self(normed, normed, allowed)
        return x + self.mlp(self.norm_mlp(x))


def same_cluster(labels: Tensor) -> Tensor:
    """(B, N) labels to (B, N, N) bool: block-diagonal, in whatever order the tokens are.

    A token with label -1 sees nothing.
    """
    return (labels[:, :, None] == labels[:, None, :]) & (labels >= 0)[:, :, None]
