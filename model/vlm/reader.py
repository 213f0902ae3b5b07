"""What the language model has read so far, while it speaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from setokim.vlm.pointer_head import Memory

if TYPE_CHECKING:
    from setokim.vlm.modeling_setokim import SetokimModel


class Reader:
    """Feeds the language model, with its cache or without."""

    def __init__(self, model: SetokimModel, use_cache: bool):
        self._model = model
        self._cache = DynamicCache() if use_cache else None
        self._embeddings: Tensor | None = None
        self._seen: Tensor | None = None
        self._memory: Memory | None = None

    def read(
        self, embeddings: Tensor, seen: Tensor, ids: Tensor, visual: Tensor, tokens: Tensor
    ) -> Tensor:
        """Reads on.

        Args:
            embeddings: (B, n, hidden), or two times B rows for guidance.
            seen: (B, n) or (2 B, n), 0 for what nobody reads.
            ids: (B, n) token in each place.
            visual: (B, n) number of the visual token in each place, -1 for none.
            tokens: (S, token_dim) visual tokens.

        Returns:
            (B, hidden) or (2 B, hidden), the state of the last place.
        """
        if len(embeddings) > len(visual):
            ids, visual = torch.cat([ids, ids]), torch.cat([visual, visual])
        new = seen
        self._seen = seen if self._seen is None else torch.cat([self._seen, seen], 1)
        if self._cache is None:
            earlier = [] if self._embeddings is None else [self._embeddings]
            embeddings = self._embeddings = torch.cat([*earlier, embeddings], 1)
        positions = (self._seen.cumsum(1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        found = self._model.decode(
            embeddings,
            self._seen,
            positions,
            past_key_values=self._cache,
            use_cache=self._cache is not None,
        )
        hidden = found.last_hidden_state
        # Without a cache all was read anew, and is the same.
        memory = self._model.memory(hidden[:, -new.shape[1] :], ids, visual, tokens, new)
        self._memory = memory if self._memory is None else self._memory.then(memory)
        return hidden[:, -1]

    def conditions(self, hidden: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the diffusion head draws the next tokens of some rows from.

        Args:
            hidden: of `read`.
            rows: (S,) int64, ascending.
        """
        last = torch.full_like(rows, self._seen.shape[1] - 1)
        return self._model.conditions(hidden[rows], rows, last, self._memory)
