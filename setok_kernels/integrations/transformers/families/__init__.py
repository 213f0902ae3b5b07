"""Families that are registered on import. None of the modules imports transformers."""

from setok_kernels.integrations.transformers.families import encoders, llava, qwen

__all__ = ["encoders", "llava", "qwen"]
