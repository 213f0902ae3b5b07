"""Stand-in for a vision encoder that a run from stored tokens does not need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from PIL import Image
from torch import Tensor, nn

from setokim.tokenizer.encoders import VisionEncoder


class AbsentEncoder(nn.Module):
    """Shapes and preprocessing of a vision encoder, without its weights.

    Attributes:
        grid: rows and columns of the features.
        feature_dim: number of features per patch.
        processor: resizing and normalisation.
        pixel_size: height and width of the resized images.

    Args:
        encoder: encoder to stand in for; no reference to it is kept.
    """

    def __init__(self, encoder: VisionEncoder):
        super().__init__()
        self.grid, self.feature_dim = encoder.grid, encoder.feature_dim
        self.processor, self.pixel_size = encoder.processor, encoder.pixel_size

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Resize and normalise B RGB images to (B, 3, height, width), float32."""
        return self.processor(images, self.pixel_size)

    def normalise(self, images: Tensor) -> NoReturn:
        """Raise the error of `forward`."""
        return self.forward(images)

    def features(self, pixels: Tensor) -> NoReturn:
        """Raise the error of `forward`."""
        return self.forward(pixels)

    def forward(self, images: Sequence[Image.Image] | Tensor) -> NoReturn:
        """Raise an error, since there are no weights.

        Raises:
            RuntimeError: in any case.
        """
        raise RuntimeError(
            "encoder: expected a model with its vision encoder to encode images, got one that was "
            "loaded without it (with_encoder=False)"
        )
