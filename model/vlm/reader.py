"""Incremental decoding: cache of the language model and conditions of the diffusion head."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from setokim.vlm.pointer_head import Memory, Pointed


class LanguageModel(Protocol):
    """The part of `SetokimModel` that a reader needs."""

    def decode(
        self, embeddings: Tensor, attention_mask: Tensor, positions: Tensor, **kwargs
    ) -> Any: ...

    def memory(
        self, hidden: Tensor, ids: Tensor, visual: Tensor, tokens: Tensor, seen: Tensor
    ) -> Memory | None: ...

    def conditions(
        self, states: Tensor, rows: Tensor, places: Tensor, memory: Memory | None
    ) -> Pointed: ...


class Reader:
    """Step-by-step input to the language model, with its cache and memory.

    Args:
        model: language model.
        use_cache: caching of keys and values; without it, each step reads the whole sequence.
    """

    def __init__(self, model: LanguageModel, use_cache: bool):
        self._model = model
        self._cache = DynamicCache() if use_cache else None
        self._embeddings: Tensor | None = None
        self._seen: Tensor | None = None
        self._memory: Memory | None = None

    def read(
        self, embeddings: Tensor, seen: Tensor, ids: Tensor, visual: Tensor, tokens: Tensor
    ) -> Tensor:
        """Append positions and return the hidden state of the last one.

        Args:
            embeddings: (B, n, hidden) input embeddings, or (2 B, n, hidden) with guidance.
            seen: (B, n) or (2 B, n) attention mask, 0 for masked positions.
            ids: (B, n) token of each position.
            visual: (B, n) index of the visual token of each position, -1 for none.
            tokens: (S, token_dim) visual tokens.

        Returns:
            (B, hidden) or (2 B, hidden).
        """
        if len(embeddings) > len(visual):
            ids, visual = torch.cat([ids, ids]), torch.cat([visual, visual])
        new = seen
        self._seen = seen if self._seen is None else torch.cat([self._seen, seen], 1)
        if self._cache is None:
            earlier = [] if self._embeddings is None else [self._embeddings]
            embeddings = self._embeddings = torch.cat([*earlier, embeddings], 1)
        positions = (self._seen.cumsum(1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        output = self._model.decode(
            embeddings,
            self._seen,
            positions,
            past_key_values=self._cache,
            use_cache=self._cache is not None,
        )
        hidden = output.last_hidden_state
        # Without a cache, earlier positions are recomputed with the same result.
        memory = self._model.memory(hidden[:, -new.shape[1] :], ids, visual, tokens, new)
        self._memory = memory if self._memory is None else self._memory.then(memory)
        return hidden[:, -1]

    def conditions(self, hidden: Tensor, rows: Tensor) -> Pointed:
        """Return the conditions of the diffusion head for the next token of some rows.

        Args:
            hidden: result of `read`.
            rows: (S,) int64 indices of the rows, ascending.
        """
        last = torch.full_like(rows, self._seen.shape[1] - 1)
        return self._model.conditions(hidden[rows], rows, last, self._memory)

    def repeat(self, tokens: Tensor, pointed: Pointed, rows: Tensor) -> Tensor:
        """Replace tokens by earlier ones where the pointer head chooses to repeat one.

        Args:
            tokens: (S, token_dim) new tokens.
            pointed: result of `conditions`.
            rows: (S,) int64 indices of the rows.
        """
        if pointed.choices is None or self._memory is None:
            return tokens
        chosen = pointed.choices.argmax(-1)
        repeats = (chosen < pointed.choices.shape[1] - 1)[:, None]
        exact = self._memory.exact
        assert exact is not None
        earlier = exact[rows, chosen.clamp(max=exact.shape[1] - 1)]
        return torch.where(repeats, earlier.to(tokens), tokens)
