"""The SeTokim pipeline: vision encoders, SeTok's tokenizer, and the language model on top of it.

Every name is loaded when first used: commands that need no model start without torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from setokim.data.image_processing import (
        ImageProcessor,
        UnreadableImageError,
        find_images,
        load_image,
    )
    from setokim.tokenizer.configuration_setok import SetokConfig
    from setokim.tokenizer.encoders import (
        HFVisionEncoder,
        PatchStatisticsEncoder,
        VisionEncoder,
        build_encoder,
    )
    from setokim.tokenizer.modeling_setok import SetokModel, VisualTokens
    from setokim.tokenizer.processing_setok import SetokProcessor
    from setokim.visualization.plot import plot
    from setokim.vlm.configuration_setokim import SetokimConfig
    from setokim.vlm.modeling_setokim import SetokimModel
    from setokim.vlm.processing_setokim import SetokimProcessor

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
    "plot",
]

_MODULES = {
    "HFVisionEncoder": "tokenizer.encoders",
    "ImageProcessor": "data.image_processing",
    "PatchStatisticsEncoder": "tokenizer.encoders",
    "SetokConfig": "tokenizer.configuration_setok",
    "SetokModel": "tokenizer.modeling_setok",
    "SetokProcessor": "tokenizer.processing_setok",
    "SetokimConfig": "vlm.configuration_setokim",
    "SetokimModel": "vlm.modeling_setokim",
    "SetokimProcessor": "vlm.processing_setokim",
    "UnreadableImageError": "data.image_processing",
    "VisionEncoder": "tokenizer.encoders",
    "VisualTokens": "tokenizer.modeling_setok",
    "build_encoder": "tokenizer.encoders",
    "find_images": "data.image_processing",
    "load_image": "data.image_processing",
    "plot": "visualization.plot",
}


# A type checker would take any name for one of ours.
if not TYPE_CHECKING:

    def __getattr__(name: str):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
