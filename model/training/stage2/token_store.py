"""Cache of the visual tokens of a frozen tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image

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
    def tokenize(self, setok: SetokModel, images: Sequence[Image.Image]) -> VisualTokens:
        """Tokenize images as `SetokModel.tokenize` does, without gradient.

        Args:
            setok: tokenizer, with the same weights in each call.
            images: M RGB images; those in the cache are not even preprocessed.

        Returns:
            Visual tokens of the M images, without the neighbours of `decisions`.
        """
        if not images:
            pixels = torch.zeros(0, 3, *setok.processor().size, device=setok.device)
            return setok.tokenize(pixels)
        keys = [_key(image) for image in images]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        missing = [key for key in first if key not in self._kept]
        found = {key: self._kept[key] for key in first if key in self._kept}
        if missing:
            fresh = _without_neighbours(setok.tokenize([images[first[key]] for key in missing]))
            for i, key in enumerate(missing):
                found[key] = fresh.select(torch.tensor([i], device=fresh.tokens.device))
                if len(self._kept) < self._limit:
                    self._kept[key] = found[key]
        return VisualTokens.join([found[key] for key in keys])


def _without_neighbours(visual: VisualTokens) -> VisualTokens:
    """Drop the neighbours of each patch, which only replay a clustering: 40 % of its memory."""
    if visual.clusters is None:
        return visual
    decisions = visual.clusters.decisions
    decisions = replace(decisions, knn=decisions.knn[..., :0].clone())
    return replace(visual, parts=replace(visual.clusters, decisions=decisions))


def _key(image: Image.Image) -> bytes:
    size = f"{image.width} {image.height} ".encode()
    return hashlib.blake2b(size + image.tobytes(), digest_size=16).digest()
