"""A vision encoder without weights: colour and gradient statistics of every patch."""

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
# Chosen by eye on photographs. Hue tells objects apart better than lightness, because shading runs
# across one object; the wider mean outweighs the patch's own, because a patch on an edge mixes two
# objects into a colour of neither.
_COLOUR_WEIGHTS = (1.0, 3.0, 3.0)
# Of a patch's own colour, that of its neighbourhood, its deviation, and its contrasts.
WEIGHTS = (0.5, 1.2, 0.5, 1.0)
_SCALES = 3
# Of squared colours: what is less is rounding.
_FLAT = 1e-12
_ORIENTATIONS = 4
# The coarsest scale still has a pixel per patch.
_MIN_PATCH_SIZE = 2 ** (_SCALES - 1)


def srgb_to_oklab(rgb: Tensor) -> Tensor:
    """Converts sRGB in [0, 1] to OKLab, in which distances are roughly as large as they look.

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
    """Squared directional derivatives of a lightness image.

    Args:
        lightness: (B, 1, H, W).
        orientations: Directions, evenly spread over half a turn.

    Returns:
        (B, orientations, H, W).
    """
    padded = F.pad(lightness, (1, 1, 1, 1), mode="replicate")
    dx = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2  # (B, 1, H, W)
    dy = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    angles = [math.pi * i / orientations for i in range(orientations)]
    return torch.cat([(dx * math.cos(a) + dy * math.sin(a)) ** 2 for a in angles], 1)


class PatchStatisticsEncoder(nn.Module):
    """Describes each patch by its colours and its texture; nothing to download, nothing to train.

    The 21 features of a patch are, in OKLab: the mean colour (3), the same over 3 × 3 patches (3),
    the standard deviation of the colour (3), and the contrast of the lightness in 4 directions at
    3 scales (12). Deviations and contrasts too are averaged over 3 × 3 patches, with weights
    1 2 1, because a texture is larger than a patch. The position is no feature: two pieces of sky
    on either side of a tower are one thing.

    Attributes:
        grid: Rows and columns of patches.
        patch_size: Side of a patch in pixels; the picture is squeezed to grid × patch_size.
        weights: Of the four groups of features.
        feature_dim: Number of features per patch.
    """

    feature_dim = 9 + _SCALES * _ORIENTATIONS

    def __init__(
        self,
        grid: tuple[int, int] | None = None,
        patch_size: int = 14,
        weights: Sequence[float] = WEIGHTS,
    ):
        """Checks the sizes.

        Args:
            grid: Rows and columns, 27 × 27 (SigLIP's at 384 pixels) when None.
            patch_size: Side of a patch in pixels, at least 4.
            weights: Of the mean colour, that over 3 × 3 patches, the deviations and the contrasts;
                at least 0, and not all 0. Where things are hardly larger than 3 × 3 patches, what
                the neighbours look like makes their rims things of their own.

        Raises:
            ValueError: The grid has no patches, the patches are too small, or the weights are not
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
        """Height and width that pictures are squeezed to."""
        return self.grid[0] * self.patch_size, self.grid[1] * self.patch_size

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Squeezes B RGB pictures to (B, 3, rows · patch_size, columns · patch_size) in [0, 1]."""
        return self.processor(images, self.pixel_size)

    def forward(self, images: Sequence[Image.Image] | Tensor) -> Tensor:
        """Computes the features of every patch.

        Args:
            images: B RGB pictures, or what `preprocess` made of them.

        Returns:
            (B, rows, columns, feature_dim), float32.
        """
        return self.features(images if isinstance(images, Tensor) else self.preprocess(images))

    def normalise(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, h, w) in [0, 1] as `preprocess` would give them, with gradient."""
        return resized(pictures, self.pixel_size)

    def features(self, pixels: Tensor) -> Tensor:
        """As `forward`, of pixels only."""
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


def resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) bilinearly at another size, averaged where it is smaller."""
    if tuple(pictures.shape[-2:]) == size:
        return pictures
    return F.interpolate(pictures, size, mode="bilinear", antialias=True)


def _root(squares: Tensor) -> Tensor:
    """Square roots whose gradient is 0, not infinite, where a patch is flat."""
    return torch.where(squares > _FLAT, squares.clamp(min=_FLAT).sqrt(), 0)


def _smooth(maps: Tensor) -> Tensor:
    """Averages (B, C, H, W) over 3 × 3 neighbours with weights 1 2 1 in both directions."""
    channels = maps.shape[1]
    line = maps.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(line, line).expand(channels, 1, 3, 3)
    padded = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel, groups=channels)
