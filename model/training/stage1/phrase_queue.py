"""Queue of recent phrases, which the phrases of a batch compete with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Max number of words of a phrase in the queue; longer phrases are not queued.
_WORDS = 16


class PhraseQueue(nn.Module):
    """The token ids of recent phrases; part of a checkpoint, so that a run resumes exactly.

    Args:
        size: number of phrases.

    Attributes:
        ids: (size, words) int64, newest first, 0 in padding.
    """

    ids: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("ids", torch.zeros(size, _WORDS, dtype=torch.int64))

    def candidates(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Return the different phrases of a batch and of the queue.

        Args:
            words: (B, W, L) int64 ids of the phrases of each text, 0 in padding.

        Returns:
            (K, L') int64 ids of different phrases, and (B, K) bool, those of each text.
        """
        width = max(words.shape[2], _WORDS)
        batch = F.pad(words, (0, width - words.shape[2])).flatten(0, 1)
        queued = F.pad(self.ids, (0, width - _WORDS))
        ids, index = torch.cat([batch, queued.to(batch)]).unique(dim=0, return_inverse=True)
        own = torch.zeros(words.shape[0], len(ids), dtype=torch.bool, device=words.device)
        own.scatter_(1, index[: len(batch)].view(words.shape[:2]), True)
        present = ids.any(1)
        # Columns without any word are no loss to drop.
        longest = int(ids.any(0).nonzero().max()) + 1 if present.any() else 1
        return ids[present, :longest], own[:, present]

    def push(self, words: Tensor) -> None:
        """Add the phrases of a batch (B, W, L); the oldest ones leave."""
        if not len(self.ids):
            return
        phrases = words.flatten(0, 1)
        longer = phrases[:, _WORDS:].any(1)
        phrases = F.pad(phrases[:, :_WORDS], (0, max(0, _WORDS - phrases.shape[1])))
        phrases = phrases[phrases.any(1) & ~longer].to(self.ids)
        self.ids.copy_(torch.cat([phrases, self.ids])[: len(self.ids)])
