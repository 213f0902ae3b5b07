"""Earlier visual tokens for the next one: what an edit leaves alone is repeated, not drawn anew.

A pointer with a gate, as in "Pointer sentinel mixture models" (Merity et al., 2017): the state
before the next token looks for earlier tokens with a like state before them, as a language model
looks for the words that it has read before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of cosines, before training.
_SHARPNESS = 10.0
# Of the gates before training: mostly open.
_OPEN = 2.0


@dataclass(frozen=True)
class Memory:
    """What rows have read so far.

    Attributes:
        hidden: (B, T, hidden) states of all places, 0 where nothing may be seen.
        tokens: (B, T, token_dim) visual tokens in units of the diffusion, 0 in other places.
        visual: (B, T) bool, the places of visual tokens that may be seen.
        begun: (B, T) int64, how many pictures the assistant has begun up to each place.
    """

    hidden: Tensor
    tokens: Tensor
    visual: Tensor
    begun: Tensor

    def then(self, later: Memory) -> Memory:
        """With what was read after it."""
        return Memory(
            torch.cat([self.hidden, later.hidden], 1),
            torch.cat([self.tokens, later.tokens], 1),
            torch.cat([self.visual, later.visual], 1),
            torch.cat([self.begun, later.begun + self.begun[:, -1:]], 1),
        )


class Recall(nn.Module):
    """Conditions for the diffusion head, and what its answer is added to.

    Args:
        hidden: numbers of a state.
        token_dim: numbers of a token.
        width: of queries and keys.
        blocks: sizes of the blocks of a token's channels, which have a gate each: what a thing
            looks like may be repeated where its place is not.
    """

    def __init__(self, hidden: int, token_dim: int, width: int, blocks: Sequence[int]):
        super().__init__()
        self.blocks = tuple(blocks)
        self.condition_dim = 2 * hidden + token_dim
        self.query = nn.Linear(hidden, width)
        self.before = nn.Linear(hidden, width)
        self.at = nn.Linear(hidden, width, bias=False)
        self.gates = nn.Linear(hidden, len(self.blocks))
        self.sharpness = nn.Parameter(torch.tensor(math.log(_SHARPNESS)))
        # Like states find one another from the beginning.
        self.before.load_state_dict(self.query.state_dict())
        nn.init.zeros_(self.at.weight)
        nn.init.constant_(self.gates.bias, _OPEN)

    def forward(
        self, states: Tensor, rows: Tensor, places: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """Looks back.

        Args:
            states: (S, hidden) before the tokens to be drawn.
            rows: (S,) int64 row of each, in ascending order.
            places: (S,) int64 place of each state. Only what was before the picture that is being
                drawn is seen: its own tokens are not to come twice.
            memory: of the rows.

        Returns:
            (S, condition_dim) conditions, and (S, token_dim) in units of the diffusion: the tokens
            that were found, through their gates. 0 where there is nothing to be found.
        """
        batch = len(memory.visual)
        # One line for each of a row's states.
        first = torch.searchsorted(rows, torch.arange(batch, device=rows.device))
        column = torch.arange(len(rows), device=rows.device) - first[rows]
        most = int(column.max()) + 1 if len(rows) else 0
        asked = F.normalize(self.query(states), dim=-1)
        queries = asked.new_zeros(batch, most, asked.shape[-1]).index_put((rows, column), asked)
        own = memory.begun.new_zeros(batch, most)
        own = own.index_put((rows, column), memory.begun[rows, places])
        seen = memory.visual[:, None] & (memory.begun[:, None] < own[..., None])  # (B, Q, T)
        earlier = F.pad(memory.hidden[:, :-1], (0, 0, 1, 0))
        keys = F.normalize(self.before(earlier) + self.at(memory.hidden), dim=-1)
        likeness = self.sharpness.exp() * queries @ keys.mT
        share = likeness.masked_fill(~seen, torch.finfo(likeness.dtype).min).softmax(-1)
        share = share * seen
        found = (share @ memory.tokens.to(share))[rows, column]
        meant = (share @ memory.hidden)[rows, column]
        gates = torch.sigmoid(self.gates(states))
        wide = torch.cat([gates[:, [i]].expand(-1, n) for i, n in enumerate(self.blocks)], -1)
        return torch.cat([states, meant.to(states), found.to(states)], -1), wide.float() * found
