"""Pointer to earlier visual tokens, so that unchanged parts of an edited image are copied.

A pointer with gates, as in "Pointer sentinel mixture models" (Merity et al., 2017). The hidden
state before the next token attends to earlier tokens whose preceding hidden state is similar, as
induction heads of language models do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Factor of the cosine similarities before training.
_INITIAL_SHARPNESS = 10.0
# Bias of the gates before training: a gate is sigmoid(2) = 0.88.
_INITIAL_GATE_BIAS = 2.0


@dataclass(frozen=True)
class Memory:
    """Hidden states and visual tokens of all positions so far.

    Attributes:
        hidden: (B, T, hidden) hidden states, 0 at positions that are masked out.
        tokens: (B, T, token_dim) targets of the diffusion head for the visual tokens, in its
            units; 0 at other positions.
        visual: (B, T) bool, positions of visual tokens that are not masked out.
        begun: (B, T) int64, number of images that the assistant has begun up to each position.
        exact: (B, T, D) visual tokens themselves, which may be repeated; None where none is.
    """

    hidden: Tensor
    tokens: Tensor
    visual: Tensor
    begun: Tensor
    exact: Tensor | None = None

    def then(self, later: Memory) -> Memory:
        """Append later positions, whose `begun` counts from 0."""
        return Memory(
            torch.cat([self.hidden, later.hidden], 1),
            torch.cat([self.tokens, later.tokens], 1),
            torch.cat([self.visual, later.visual], 1),
            torch.cat([self.begun, later.begun + self.begun[:, -1:]], 1),
            None if self.exact is None else torch.cat([self.exact, later.exact], 1),
        )


@dataclass(frozen=True)
class Pointed:
    """Result of the pointer head for S tokens to be generated.

    Attributes:
        condition: (S, condition_dim) conditions of the diffusion head.
        base: (S, token_dim) attended tokens in units of the diffusion, times their gates; 0
            without an earlier token. None without a pointer head.
        choices: (S, T + 1) float32 logits of repeating the token at each position, -inf where it
            cannot be repeated, and, last, of a new token; None without `copies`.
    """

    condition: Tensor
    base: Tensor | None
    choices: Tensor | None = None


class PointerHead(nn.Module):
    """Attention from hidden states to earlier visual tokens, with a gate for each channel block.

    With `copies`, the same similarities decide whether a token repeats an earlier one exactly.

    Args:
        hidden: channels of a hidden state.
        token_dim: channels of a token.
        width: channels of queries and keys.
        blocks: sizes of the blocks of a token's channels. Each block has a gate of its own: the
            appearance of an object may be copied where its position is not.
        copies: flag for the choice between earlier tokens and a new one.
    """

    def __init__(
        self,
        hidden: int,
        token_dim: int,
        width: int,
        blocks: Sequence[int],
        copies: bool = False,
    ):
        super().__init__()
        self.blocks = tuple(blocks)
        self.condition_dim = 2 * hidden + token_dim
        self.query = nn.Linear(hidden, width)
        # Two parts of a key: from the hidden state before a token, and from that at the token.
        self.before = nn.Linear(hidden, width)
        self.at = nn.Linear(hidden, width, bias=False)
        self.gates = nn.Linear(hidden, len(self.blocks))
        self.sharpness = nn.Parameter(torch.tensor(math.log(_INITIAL_SHARPNESS)))
        self.novelty = nn.Linear(hidden, 1) if copies else None
        # Similar hidden states attend to each other before training.
        self.before.load_state_dict(self.query.state_dict())
        nn.init.zeros_(self.at.weight)
        nn.init.constant_(self.gates.bias, _INITIAL_GATE_BIAS)

    def forward(
        self, hidden_states: Tensor, rows: Tensor, positions: Tensor, memory: Memory
    ) -> Pointed:
        """Attend to the visual tokens before the image that is being generated.

        Args:
            hidden_states: (S, hidden) hidden states before the tokens to be generated.
            rows: (S,) int64 row of each, in ascending order.
            positions: (S,) int64 position of each. Tokens of the image that is being generated are
                masked out, so that none is copied within it.
            memory: hidden states and visual tokens of the rows.
        """
        batch = len(memory.visual)
        # Queries are padded to (B, Q): one line for each hidden state of a row.
        first = torch.searchsorted(rows, torch.arange(batch, device=rows.device))
        column = torch.arange(len(rows), device=rows.device) - first[rows]
        max_queries = int(column.max()) + 1 if len(rows) else 0
        query = F.normalize(self.query(hidden_states), dim=-1)
        queries = query.new_zeros(batch, max_queries, query.shape[-1])
        queries = queries.index_put((rows, column), query)  # (B, Q, width)
        own = memory.begun.new_zeros(batch, max_queries)
        own = own.index_put((rows, column), memory.begun[rows, positions])
        visible = memory.visual[:, None] & (memory.begun[:, None] < own[..., None])  # (B, Q, T)
        earlier = F.pad(memory.hidden[:, :-1], (0, 0, 1, 0))
        keys = F.normalize(self.before(earlier) + self.at(memory.hidden), dim=-1)  # (B, T, width)
        logits = self.sharpness.exp() * queries @ keys.mT  # (B, Q, T)
        logits = logits.masked_fill(~visible, torch.finfo(logits.dtype).min)
        weights = logits.softmax(-1)
        # All 0 where no token is visible: the softmax is uniform there.
        weights = weights * visible
        token = (weights @ memory.tokens.to(weights))[rows, column]  # (S, token_dim)
        context = (weights @ memory.hidden)[rows, column]  # (S, hidden)
        gates = torch.sigmoid(self.gates(hidden_states))  # (S, blocks)
        gate = torch.cat([gates[:, [i]].expand(-1, n) for i, n in enumerate(self.blocks)], -1)
        condition = torch.cat(
            [hidden_states, context.to(hidden_states), token.to(hidden_states)], -1
        )
        choices = None
        if self.novelty is not None:
            repeats = logits.float().masked_fill(~visible, -torch.inf)[rows, column]
            choices = torch.cat([repeats, self.novelty(hidden_states).float()], -1)
        return Pointed(condition, gate.float() * token, choices)
