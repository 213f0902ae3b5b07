"""Cache of the visual tokens of a frozen tokenizer."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from setokim.tokenizer.modeling_setok import SetokModel, VisualTokens


class TokenStore:
    """Cache of visual tokens, for data in which images occur again and again.

    Each process has a cache of its own. It is not part of a checkpoint, because the tokens can be
    recomputed exactly.

    Args:
        limit: maximum number of images in the cache; further ones are tokenized each time.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._kept: dict[bytes, VisualTokens] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @torch.no_grad()
    def tokenize(self, setok: SetokModel, pixel_values: Tensor) -> VisualTokens:
        """Tokenize images as `SetokModel.tokenize` does, without gradient.

        Args:
            setok: tokenizer, with the same weights in each call.
            pixel_values: preprocessed images (M, 3, H, W).

        Returns:
            Visual tokens of the M images.
        """
        if not len(pixel_values):
            return setok.tokenize(pixel_values)
        keys = [_key(image) for image in pixel_values.cpu()]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        missing = [key for key in first if key not in self._kept]
        found = {key: self._kept[key] for key in first if key in self._kept}
        if missing:
            fresh = setok.tokenize(pixel_values[[first[key] for key in missing]])
            for i, key in enumerate(missing):
                found[key] = fresh.select(torch.tensor([i], device=fresh.tokens.device))
                if len(self._kept) < self._limit:
                    self._kept[key] = found[key]
        return VisualTokens.join([found[key] for key in keys])


def _key(image: Tensor) -> bytes:
    return hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest()
