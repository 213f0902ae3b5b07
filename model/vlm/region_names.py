"""Names of image regions, and the head that predicts the words for a visual token.

The hidden state before a generated token decides what the token will show. The diffusion loss
alone tells it little: most of a token's variance is not in the text. Where the data name the
regions of an image, a linear layer must predict the words of the region that the next token shows.
Another layer names the token itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setok_kernels import Packed
from setokim.tokenizer.modeling_setok import VisualTokens

# Min fraction of a token's patches inside a region for the token to have its name.
_MIN_INSIDE = 0.5


@dataclass(frozen=True)
class RegionNames:
    """Named regions of M images.

    Attributes:
        labels: (M, h, w) int64 region of each pixel, -1 where none is known.
        words: (M, L, W) int64 ids of the words that name each region, -100 in padding. A region
            without words has no name.
    """

    labels: Tensor
    words: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RegionNames:
        """Return the same regions on another device; arguments are those of `Tensor.to`."""
        return RegionNames(
            self.labels.to(device, non_blocking=non_blocking),
            self.words.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> RegionNames:
        """Return the same regions in pinned memory; torch's `DataLoader` calls this."""
        return RegionNames(self.labels.pin_memory(), self.words.pin_memory())

    def of_tokens(self, visual: VisualTokens, packed: Packed) -> Tensor:
        """Return the ids of the words for each visual token.

        Args:
            visual: visual tokens of the M images.
            packed: the same tokens without padding.

        Returns:
            (S, W) int64 ids in the order of `packed`; -100 in padding and for tokens that lie in
            no region for the most part.
        """
        regions = self.words.shape[1]
        if not self.words.numel() or not len(packed.tokens):
            return self.words.new_full((len(packed.tokens), self.words.shape[2]), -100)
        member = F.one_hot(self.labels + 1, regions + 1)[..., 1:]  # (M, h, w, L)
        patches = F.adaptive_avg_pool2d(member.movedim(-1, 1).float(), visual.grid)  # (M, L, H, W)
        masks = visual.masks.float()  # (M, R, N)
        inside = masks @ patches.flatten(2).mT / masks.sum(-1, keepdim=True).clamp(min=1e-12)
        share, best = inside[packed.images, packed.rows].max(-1)  # (S,) each
        words = self.words[packed.images, best]
        return words.masked_fill((share < _MIN_INSIDE)[:, None], -100)


class NameHead(nn.Module):
    """Linear layers between hidden states and the language model's output embeddings.

    Args:
        hidden: channels of a hidden state.
    """

    def __init__(self, hidden: int):
        super().__init__()
        self.drawn = nn.Linear(hidden, hidden)  # of the state before a generated token
        self.read = nn.Linear(hidden, hidden)  # of the state at a token, read or generated


def bag_of_words_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Return the sum over tokens of the mean cross-entropy of the words of each.

    Args:
        logits: (S, V) float32 logits of the vocabulary.
        words: (S, W) int64 ids, -100 in padding; tokens without words add 0.
    """
    log_probabilities = logits.float().log_softmax(-1)
    named = words >= 0
    chosen = log_probabilities.gather(1, words.clamp(min=0)).masked_fill(~named, 0)
    return -(chosen.sum(1) / named.sum(1).clamp(min=1)).sum()
