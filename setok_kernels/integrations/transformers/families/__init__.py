"""Families that are registered on import. None of the modules imports transformers."""

from setok_kernels.integrations.transformers.families import llava, paligemma, tiles

__all__ = ["llava", "paligemma", "tiles"]
