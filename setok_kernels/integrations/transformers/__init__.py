"""Fewer visual tokens in the vision-language models of transformers (>= 5.17, < 6)."""

from setok_kernels.integrations.transformers import families
from setok_kernels.integrations.transformers.clustering import Encoded, Reduced
from setok_kernels.integrations.transformers.options import Options
from setok_kernels.integrations.transformers.reduce import (
    Reduction,
    reduce_visual_tokens,
    restore,
)
from setok_kernels.integrations.transformers.registry import (
    Family,
    Modality,
    register_family,
    registered_families,
)

__all__ = [
    "Encoded",
    "Family",
    "Modality",
    "Options",
    "Reduced",
    "Reduction",
    "families",
    "reduce_visual_tokens",
    "register_family",
    "registered_families",
    "restore",
]
