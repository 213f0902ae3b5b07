"""Vision encoder without weights: colour and gradient statistics of every patch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from setokim.data.image_processing import ImageProcessor

# Linear sRGB to the cone responses of OKLab, and their cube roots to OKLab itself (B. Ottosson,
# "A perceptual color space for image processing", 2020).
_RGB_TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_CONES_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
# Chosen by eye on photographs. Hue separates objects better than lightness, because shading varies
# within an object. The wider mean outweighs the patch's own, because a patch on a boundary mixes
# two objects into a colour of neither.
_COLOUR_WEIGHTS = (1.0, 3.0, 3.0)
# Weights of a patch's own colour, that of its neighbourhood, its deviation, and its contrasts.
WEIGHTS = (0.5, 1.2, 0.5, 1.0)
_SCALES = 3
# Squared colours below this are rounding errors.
_FLAT = 1e-12
_ORIENTATIONS = 4
# The coarsest scale still has a pixel per patch.
_MIN_PATCH_SIZE = 2 ** (_SCALES - 1)


def srgb_to_oklab(rgb: Tensor) -> Tensor:
    """Convert sRGB in [0, 1] to OKLab, whose distances approximate perceived differences.

    Args:
        rgb: (B, 3, H, W).

    Returns:
        (B, 3, H, W): lightness in [0, 1], then green to red and blue to yellow, about ±0.4.
    """
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = torch.einsum("ij,bjhw->bihw", rgb.new_tensor(_RGB_TO_CONES), linear)
    # The slope of the root is infinite at black.
    roots = torch.where(cones > _FLAT, cones.clamp(min=_FLAT) ** (1 / 3), 0)
    return torch.einsum("ij,bjhw->bihw", rgb.new_tensor(_CONES_TO_LAB), roots)


def oriented_contrast(lightness: Tensor, orientations: int) -> Tensor:
    """Compute squared directional derivatives of a lightness image.

    Args:
        lightness: (B, 1, H, W).
        orientations: number of directions, evenly spread over half a turn.

    Returns:
        (B, orientations, H, W).
    """
    padded = F.pad(lightness, (1, 1, 1, 1), mode="replicate")
    dx = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2  # (B, 1, H, W)
    dy = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    angles = [math.pi * i / orientations for i in range(orientations)]
    return torch.cat([(dx * math.cos(a) + dy * math.sin(a)) ** 2 for a in angles], 1)


class PatchStatisticsEncoder(nn.Module):
    """Encoder of colour and texture statistics, without download or training.

    The 21 features of a patch are, in OKLab: the mean colour (3), the same over 3 × 3 patches (3),
    the standard deviation of the colour (3), and the contrast of the lightness in 4 directions at
    3 scales (12). Deviations and contrasts too are averaged over 3 × 3 patches, with weights
    1 2 1, because a texture is larger than a patch. The position is no feature: two pieces of sky
    on either side of a tower are one object.

    Attributes:
        grid: rows and columns of patches.
        patch_size: side of a patch in pixels; images are resized to grid × patch_size.
        weights: weights of the four groups of features.
        feature_dim: number of features per patch.
    """

    feature_dim = 9 + _SCALES * _ORIENTATIONS

    def __init__(
        self,
        grid: tuple[int, int] | None = None,
        patch_size: int = 14,
        weights: Sequence[float] = WEIGHTS,
    ):
        """Check and store the sizes and weights.

        Args:
            grid: rows and columns; None for 27 × 27 (SigLIP's at 384 pixels).
            patch_size: side of a patch in pixels, at least 4.
            weights: weights of the mean colour, that over 3 × 3 patches, the deviations and the
                contrasts; at least 0, and not all 0. With objects hardly larger than 3 × 3 patches,
                a large second weight turns their boundaries into clusters of their own.

        Raises:
            ValueError: the grid has no patches, the patches are too small, or the weights are not
                four such numbers.
        """
        super().__init__()
        grid = (27, 27) if grid is None else tuple(grid)
        if len(grid) != 2 or min(grid) < 1:
            raise ValueError(f"grid: expected two numbers of at least 1, got {grid}")
        if patch_size < _MIN_PATCH_SIZE:
            raise ValueError(f"patch_size: expected at least {_MIN_PATCH_SIZE}, got {patch_size}")
        weights = tuple(weights)
        if (
            len(weights) != 4
            or not all(0 <= one < float("inf") for one in weights)
            or not any(weights)
        ):
            expected = "four numbers of at least 0, not all 0"
            raise ValueError(f"feature_weights: expected {expected}, got {weights}")
        self.grid: tuple[int, int] = grid
        self.patch_size = patch_size
        self.weights = weights
        self.processor = ImageProcessor(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    @property
    def pixel_size(self) -> tuple[int, int]:
        """Height and width of the resized images."""
        return self.grid[0] * self.patch_size, self.grid[1] * self.patch_size

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Resize B RGB images to (B, 3, rows · patch_size, columns · patch_size) in [0, 1]."""
        return self.processor(images, self.pixel_size)

    def forward(self, images: Sequence[Image.Image] | Tensor) -> Tensor:
        """Compute the features of every patch.

        Args:
            images: B RGB images, or their pixels from `preprocess`.

        Returns:
            (B, rows, columns, feature_dim), float32.
        """
        return self.features(images if isinstance(images, Tensor) else self.preprocess(images))

    def normalise(self, images: Tensor) -> Tensor:
        """Resize images (B, 3, h, w) in [0, 1] as `preprocess`, with gradient."""
        return resized(images, self.pixel_size)

    def features(self, pixels: Tensor) -> Tensor:
        """Compute features as `forward`, from pixels only."""
        lab = srgb_to_oklab(pixels.float())
        lab = lab * lab.new_tensor(_COLOUR_WEIGHTS)[:, None, None]
        own, neighbours, deviations, contrast_weight = self.weights
        mean = F.avg_pool2d(lab, self.patch_size)  # (B, 3, rows, columns)
        square = F.avg_pool2d(lab * lab, self.patch_size)
        deviation = _root(_smooth((square - mean * mean).clamp(min=0)))

        contrasts, lightness = [], lab[:, :1]
        for _ in range(_SCALES):
            contrast = oriented_contrast(lightness, _ORIENTATIONS)
            pooled = F.adaptive_avg_pool2d(contrast, self.grid)  # (B, orientations, rows, columns)
            contrasts.append(_root(_smooth(pooled)) * contrast_weight)
            lightness = F.avg_pool2d(lightness, 2)
        parts = [
            mean * own,
            _smooth(mean) * neighbours,
            deviation * deviations,
            *contrasts,
        ]
        return torch.cat(parts, 1).permute(0, 2, 3, 1).contiguous()


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, h, w) bilinearly, with antialiasing when it shrinks."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def _root(squares: Tensor) -> Tensor:
    """Return square roots whose gradient is 0, not infinite, in flat patches."""
    return torch.where(squares > _FLAT, squares.clamp(min=_FLAT).sqrt(), 0)


def _smooth(maps: Tensor) -> Tensor:
    """Average (B, C, H, W) over 3 × 3 neighbours with weights 1 2 1 in both directions."""
    channels = maps.shape[1]
    line = maps.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(line, line).expand(channels, 1, 3, 3)
    padded = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel, groups=channels)
