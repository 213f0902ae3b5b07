"""Patch discriminator (PatchGAN) of adversarial training."""

from __future__ import annotations

import math

from torch import Tensor, nn

_KERNEL = 4
_SLOPE = 0.2
_INIT_STD = 0.02
_GROUP = 16


class PatchDiscriminator(nn.Module):
    """PatchGAN: one logit for each overlapping patch of an image, high for real images.

    Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", 2017, with
    their initialisation. Group norm replaces batch norm: the logits of an image do not depend on
    other images or ranks, and a resumed run has no running averages to restore.

    Attributes:
        channels: number of channels of the images.
        min_size: minimum height and width of an image, in pixels.
    """

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3):
        """Build the network.

        Args:
            channels: number of channels of the images.
            width: number of channels after the first convolution; it doubles with each further
                one, up to 8 · width.
            layers: number of convolutions that halve the image; 3 give patches of 70 × 70 pixels.

        Raises:
            ValueError: an argument is less than 1.
        """
        super().__init__()
        for name, value in (("channels", channels), ("width", width), ("layers", layers)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.channels = channels
        # The last two convolutions each remove one row and one column.
        self.min_size = 3 * 2**layers
        modules: list[nn.Module] = [
            nn.Conv2d(channels, width, _KERNEL, stride=2, padding=1),
            nn.LeakyReLU(_SLOPE),
        ]
        before = width
        for i in range(1, layers + 1):
            after = width * min(2**i, 8)
            stride = 2 if i < layers else 1
            # No bias: the norm has one.
            modules += [
                nn.Conv2d(before, after, _KERNEL, stride=stride, padding=1, bias=False),
                nn.GroupNorm(after // math.gcd(after, _GROUP), after),
                nn.LeakyReLU(_SLOPE),
            ]
            before = after
        modules.append(nn.Conv2d(before, 1, _KERNEL, padding=1))
        self.layers = nn.Sequential(*modules)
        for module in modules:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=_INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Compute the logits of images.

        Args:
            image: images (B, channels, H, W) in [0, 1].

        Returns:
            (B, 1, h, w) logits, with h = floor(H / 2^layers) - 2.

        Raises:
            ValueError: the shape is wrong, or an image is smaller than `min_size`.
        """
        if image.dim() != 4 or image.shape[1] != self.channels:
            expected = f"shape (B, {self.channels}, H, W)"
            raise ValueError(f"image: expected {expected}, got {tuple(image.shape)}")
        if min(image.shape[2:]) < self.min_size:
            expected = f"at least {self.min_size} x {self.min_size} pixels"
            height, width = image.shape[2:]
            raise ValueError(f"image: expected {expected}, got {height} x {width}")
        return self.layers(2 * image - 1)
