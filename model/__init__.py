"""The SeTokim pipeline: vision encoders, and SeTok itself, from pictures to tokens and back.

Names that need transformers are loaded when first used, so that `setok cluster` does without.
"""

from typing import TYPE_CHECKING

from setokim.encoders import (
    HFVisionEncoder,
    PatchStatisticsEncoder,
    VisionEncoder,
    build_encoder,
)
from setokim.images import ImageProcessor, UnreadableImageError, find_images, load_image

if TYPE_CHECKING:
    from setokim.configuration_setok import SetokConfig
    from setokim.modeling_setok import SetokModel, VisualTokens
    from setokim.processing_setok import SetokProcessor

__all__ = [
    "HFVisionEncoder",
    "ImageProcessor",
    "PatchStatisticsEncoder",
    "SetokConfig",
    "SetokModel",
    "SetokProcessor",
    "UnreadableImageError",
    "VisionEncoder",
    "VisualTokens",
    "build_encoder",
    "find_images",
    "load_image",
]

_LAZY = {
    "SetokConfig": "configuration_setok",
    "SetokModel": "modeling_setok",
    "SetokProcessor": "processing_setok",
    "VisualTokens": "modeling_setok",
}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
