"""The SeTokim pipeline: so far the vision encoders that turn pictures into patch features."""

from setokim.encoders import (
    HFVisionEncoder,
    PatchStatisticsEncoder,
    VisionEncoder,
    build_encoder,
)
from setokim.images import ImageProcessor, UnreadableImageError, find_images, load_image

__all__ = [
    "HFVisionEncoder",
    "ImageProcessor",
    "PatchStatisticsEncoder",
    "UnreadableImageError",
    "VisionEncoder",
    "build_encoder",
    "find_images",
    "load_image",
]
