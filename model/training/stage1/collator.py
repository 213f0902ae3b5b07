"""Collate functions of images and their texts; they run in the data loading processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from setokim.data import Sample
from setokim.tokenizer.modeling_setok import SetokModel


class ImageCollator:
    """Collate function of images.

    Attributes:
        size: height and width of the reconstructed images, in pixels.

    Args:
        setok: model with the image processor and the detokenizer.
    """

    def __init__(self, setok: SetokModel):
        self._preprocess = setok.processor()
        config = setok.config
        self.size = tuple(side * config.decoder_patch_size for side in config.decoder_grid)

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return `pixels` (B, 3, H, W) and `target` (B, 3, h, w) in [0, 1]."""
        images = [sample.image for sample in samples]
        return {
            "pixels": self._preprocess(images)["pixel_values"],
            "target": torch.stack([self._target(image) for image in images]),
        }

    def _target(self, image: Image.Image) -> Tensor:
        if image.size != (self.size[1], self.size[0]):
            image = image.resize((self.size[1], self.size[0]), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)


class Stage1Collator(ImageCollator):
    """Collate function of stage 1.

    Args:
        setok: model with the image processor and the detokenizer.
        tokenize: tokenizer of the text encoder, from phrases of B texts to (B, W, L) ids.
    """

    def __init__(self, setok: SetokModel, tokenize: Callable[[list[list[str]]], Tensor]):
        super().__init__(setok)
        self._tokenize = tokenize

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return those of `ImageCollator`, and `words` (B, W, L) ids of the phrases."""
        words = self._tokenize([list(sample.concepts) for sample in samples])
        return super().__call__(samples) | {"words": words}
