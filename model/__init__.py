"""The SeTokim pipeline: vision encoders, SeTok itself, and the language model on top of it.

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
    from setokim.configuration_setokim import SetokimConfig
    from setokim.modeling_setok import SetokModel, VisualTokens
    from setokim.modeling_setokim import SetokimModel
    from setokim.processing_setok import SetokProcessor
    from setokim.processing_setokim import SetokimProcessor

__all__ = [
    "HFVisionEncoder",
    "ImageProcessor",
    "PatchStatisticsEncoder",
    "SetokConfig",
    "SetokModel",
    "SetokProcessor",
    "SetokimConfig",
    "SetokimModel",
    "SetokimProcessor",
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
    "SetokimConfig": "configuration_setokim",
    "SetokimModel": "modeling_setokim",
    "SetokimProcessor": "processing_setokim",
    "VisualTokens": "modeling_setok",
}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
