"""Attention within sets: patches of one cluster, tokens of one image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Sets of one group differ in size by less than this factor. A smaller factor pads less but makes
# more groups, whose calls cost more than the padding saves.
_GROUP_FACTOR = 1.25


@dataclass(frozen=True, eq=False)
class SetsBySize:
    """Layout of tokens by sets, grouped by size, for attention without an N² mask.

    A set is padded to the longest of its group with copies of its first token, which are masked.
    The host reads the lengths.

    Attributes:
        tokens: (P,) int64, the token at each of P positions, as an index into all B · N.
        positions: (B · N,) int64, the position of each token plus 1; 0 for tokens in no set.
        shape: B and N.
        present: masks of the groups, (sets, longest) bool: positions that are no padding.
    """

    tokens: Tensor
    positions: Tensor
    shape: tuple[int, int]
    present: tuple[Tensor, ...]

    @classmethod
    def of(cls, labels: Tensor, rows: int) -> SetsBySize:
        """Build the layout from labels.

        Args:
            labels: (B, N) int64 below `rows`: tokens of an image with the same label are a set; a
                token with -1 is in none.
            rows: upper bound of the labels, exclusive.
        """
        batch, device = labels.shape[0], labels.device
        image = torch.arange(batch, device=device)[:, None]
        key = torch.where(labels < 0, batch * rows, image * rows + labels).flatten()  # (B · N,)
        order = key.sort(stable=True).indices
        sizes = torch.bincount(key, minlength=batch * rows + 1)[:-1]  # (B · rows,)
        start = sizes.cumsum(0) - sizes
        ascending = sizes.sort(stable=True).indices
        ascending = ascending[sizes[ascending] > 0]
        level = (sizes[ascending].log() / math.log(_GROUP_FACTOR)).floor()
        members = level.unique_consecutive(return_counts=True)[1].tolist()
        tokens, present = [order[:0]], []
        for group in ascending.split(members):
            own, longest = sizes[group, None], int(sizes[group[-1]])
            position = torch.arange(longest, device=device)
            present.append(position < own)  # (sets, longest)
            # Copies of a set's own token keep non-finite values of other sets out.
            tokens.append(order[start[group, None] + position.where(present[-1], 0)].flatten())
        tokens = torch.cat(tokens)
        real = torch.cat([key[:0].bool(), *(group.flatten() for group in present)]).nonzero()[:, 0]
        positions = torch.zeros_like(key)
        positions[tokens[real]] = real + 1
        return cls(tokens, positions, tuple(labels.shape), tuple(present))

    def lay_out(self, x: Tensor) -> Tensor:
        """Lay out (B, N, width) as (1, P, width)."""
        return x.flatten(0, 1).index_select(0, self.tokens)[None]

    def take_back(self, x: Tensor) -> Tensor:
        """Invert `lay_out`: (1, P, width) to (B, N, width), 0 for tokens in no set."""
        padded = F.pad(x.squeeze(0), (0, 0, 1, 0))
        return padded.index_select(0, self.positions).unflatten(0, self.shape)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Compute attention within sets, of (1, heads, P, d) each, with a result of that shape."""
        sizes = [group.numel() for group in self.present]
        parts = [query[:, :, :0]]
        for group, *qkv in zip(
            self.present, *(x.split(sizes, 2) for x in (query, key, value)), strict=True
        ):
            own = (x.squeeze(0).unflatten(1, group.shape).transpose(0, 1) for x in qkv)
            attended = F.scaled_dot_product_attention(*own, attn_mask=group[:, None, None])
            parts.append(attended.transpose(0, 1).flatten(1, 2)[None])
        return torch.cat(parts, 2)


class SetAttention(nn.Module):
    """Multi-head attention with a mask of allowed pairs.

    Args:
        width: width of queries and results.
        heads: number of heads; divides `width`.
        context_width: width of keys and values; None for `width`.

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
        self, x: Tensor, context: Tensor, allowed: Tensor | SetsBySize, bias: Tensor | None = None
    ) -> Tensor:
        """Compute the attention of `x` to `context`.

        Args:
            x: (B, N, width) queries.
            context: (B, M, context_width).
            allowed: (B, N, M) or (B, 1, M) bool, the pairs that attend; a query without any gets
                0. Or sets, in whose layout `x` and `context` are.
            bias: (B, heads, N, M) added to the scores if `allowed` is a tensor, or None.

        Returns:
            (B, N, width).
        """
        query, key, value = self._project(x, context)
        if isinstance(allowed, SetsBySize):
            return self.out(allowed.attend(query, key, value).transpose(1, 2).flatten(-2))
        # A softmax over nothing is NaN, in the backward pass too: such a query attends to all, and
        # its result is dropped.
        empty = ~allowed.any(-1, keepdim=True)
        mask = (allowed | empty)[:, None]
        if bias is not None:
            mask = bias.masked_fill(~mask, -torch.inf).to(query.dtype)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        attended = attended.transpose(1, 2).flatten(-2).masked_fill(empty, 0)
        return self.out(attended)

    def weights(self, x: Tensor, context: Tensor) -> Tensor:
        """Return the attention weights (B, heads, N, M) float32, without mask or bias."""
        query, key, _ = self._project(x, context)
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        return scores.float().softmax(-1)

    def _project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, heads, N, d), keys and values (B, heads, M, d)."""
        split = (self.heads, x.shape[-1] // self.heads)
        query = self.query(x).unflatten(-1, split).transpose(1, 2)
        key, value = self.key_value(context).unflatten(-1, (2, *split)).unbind(-3)
        return query, key.transpose(1, 2), value.transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer layer over sets, with optional cross-attention to a second set.

    Args:
        width: width of the tokens.
        heads: number of heads.
        mlp_ratio: ratio of the MLP's width to `width`.
        context_width: width of the second set, or None for no second set.
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
        allowed: Tensor | SetsBySize,
        context: Tensor | None = None,
        context_allowed: Tensor | None = None,
        context_bias: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Apply the layer.

        Args:
            x: (B, N, width).
            allowed: (B, N, N) or (B, 1, N) bool, the pairs that attend; or sets, see
                `SetAttention`.
            context: (B, M, context_width), the second set.
            context_allowed: (B, N, M) or (B, 1, M) bool.
            context_bias: (B, heads, N, M) added to the scores of the second set, or None.
            return_weights: return of the cross-attention weights, without mask or bias.

        Returns:
            (B, N, width); with `return_weights` also (B, heads, N, M) float32, whose rows sum to 1.
        """
        if self.attend_cross is not None:
            queries = self.norm_cross(x)
            x = x + self.attend_cross(queries, context, context_allowed, context_bias)
        normed = self.norm_self(x)
        x = x + self.attend_self(normed, normed, allowed)
        x = x + self.mlp(self.norm_mlp(x))
        # Computed here, since a sharded layer has its parameters in its forward pass only.
        return (x, self.attend_cross.weights(queries, context)) if return_weights else x


def same_cluster(labels: Tensor) -> Tensor:
    """Return (B, N, N) bool, True for pairs of tokens with the same label (B, N).

    A token with label -1 attends to nothing.
    """
    return (labels[:, :, None] == labels[:, None, :]) & (labels >= 0)[:, :, None]
