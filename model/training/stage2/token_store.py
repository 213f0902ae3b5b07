"""Visual tokens of pictures that a frozen tokenizer has seen before."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from setokim.tokenizer.modeling_setok import SetokModel, VisualTokens


class TokenStore:
    """Tokenizes each picture once, for data that shows pictures again and again.

    A store belongs to one process, and what it holds to no checkpoint: tokens that are made anew
    are the same.

    Args:
        limit: most pictures to keep; what comes later is tokenized each time.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._kept: dict[bytes, VisualTokens] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @torch.no_grad()
    def tokenize(self, setok: SetokModel, pixel_values: Tensor) -> VisualTokens:
        """As `SetokModel.tokenize`, without gradient.

        Args:
            setok: the same one in each call, its weights unchanged.
            pixel_values: (M, 3, H, W).
        """
        if not len(pixel_values):
            return setok.tokenize(pixel_values)
        keys = [_key(picture) for picture in pixel_values.cpu()]
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


def _key(picture: Tensor) -> bytes:
    return hashlib.blake2b(picture.contiguous().numpy().data, digest_size=16).digest()
