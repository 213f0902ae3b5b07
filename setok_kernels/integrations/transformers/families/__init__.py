"""Families that are registered on import. None of the modules imports transformers."""

from setok_kernels.integrations.transformers.families import (
    encoders,
    llava,
    llava_original,
    paligemma,
    qwen,
    tiles,
)

__all__ = ["encoders", "llava", "llava_original", "paligemma", "qwen", "tiles"]
