"""A critic of pictures that judges patches."""

from __future__ import annotations

import math

from torch import Tensor, nn

_KERNEL = 4
_SLOPE = 0.2
_INIT_STD = 0.02
_GROUP = 16


class PatchDiscriminator(nn.Module):
    """PatchGAN: one logit per overlapping patch of a picture, high where it looks real.

    Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", 2017, with
    their initialisation, but group norm in place of batch norm: it needs no statistics of other
    pictures or ranks, a picture's logits do not depend on its batch, and a run that is resumed has
    no running averages to restore.

    Attributes:
        min_size: smallest height and width of a picture, in pixels.
    """

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3):
        """Builds it.

        Args:
            channels: of the pictures.
            width: channels after the first convolution; they double with each further one, up to
                8 · width.
            layers: convolutions that halve the picture. 3 make patches of 70 × 70 pixels.

        Raises:
            ValueError: one of the numbers is less than 1.
        """
        super().__init__()
        for name, value in (("channels", channels), ("width", width), ("layers", layers)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.channels = channels
        # Two more convolutions take one row and one column each.
        self.min_size = 3 * 2**layers
        modules: list[nn.Module] = [
            nn.Conv2d(channels, width, _KERNEL, stride=2, padding=1),
            nn.LeakyReLU(_SLOPE),
        ]
        before = width
        for i in range(1, layers + 1):
            after = width * min(2**i, 8)
            stride = 2 if i < layers else 1
            # The norm has a bias of its own.
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

    def forward(self, picture: Tensor) -> Tensor:
        """Judges.

        Args:
            picture: (B, channels, H, W) in [0, 1].

        Returns:
            (B, 1, h, w) logits, h being H / 2^layers, rounded down, less 2.

        Raises:
            ValueError: the shape does not fit, or the picture is smaller than `min_size`.
        """
        if picture.dim() != 4 or picture.shape[1] != self.channels:
            expected = f"shape (B, {self.channels}, H, W)"
            raise ValueError(f"picture: expected {expected}, got {tuple(picture.shape)}")
        if min(picture.shape[2:]) < self.min_size:
            expected = f"at least {self.min_size} x {self.min_size} pixels"
            height, width = picture.shape[2:]
            raise ValueError(f"picture: expected {expected}, got {height} x {width}")
        return self.layers(2 * picture - 1)
