"""Visual tokens of the images of a batch: stored, cached, or made by the tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image

from setokim.tokenizer.modeling_setok import SetokModel, VisualTokens
from setokim.tokenizer.stored_tokens import Images, no_tokens, visual_tokens


class TokenStore:
    """Visual tokens of RGB images and stored images, and a cache of those of RGB images.

    The cache is for data in which images occur again and again. Each process has a cache of its
    own. It is not part of a checkpoint, because the tokens can be recomputed exactly.

    Args:
        limit: maximum number of images in the cache; further ones are tokenized each time.
        rows: result of `SetokModel.max_tokens` for data with stored images; None for data without.
    """

    def __init__(self, limit: int, rows: int | None = None):
        self._limit, self._rows = limit, rows
        self._kept: dict[bytes, VisualTokens] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def tokenize(self, setok: SetokModel, images: Images) -> VisualTokens:
        """Return the visual tokens of images, with gradient only for a trained tokenizer.

        Args:
            setok: tokenizer; one that is trained has `reads_features`, and any other has the same
                weights in each call.
            images: M RGB images and stored images; those in the cache are not even preprocessed.

        Returns:
            Visual tokens of the M images; those of RGB images lack the neighbours of `decisions`.
        """
        images = list(images)
        with torch.set_grad_enabled(setok.reads_features and torch.is_grad_enabled()):
            if images:
                return visual_tokens(
                    setok, images, lambda own: self._cached(setok, own), self._rows
                )
            if self._rows is not None and not setok.reads_features:
                return no_tokens(setok, self._rows)
            return setok.tokenize(torch.zeros(0, 3, *setok.processor().size, device=setok.device))

    def _cached(self, setok: SetokModel, images: Sequence[Image.Image]) -> VisualTokens:
        """Tokenize M RGB images, at least one, of which those in the cache are known."""
        if setok.reads_features:
            return setok.tokenize(images)
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
