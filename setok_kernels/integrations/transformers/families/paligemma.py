"""PaliGemma: positions count from 1, and token_type_ids mark the prefix without causal mask."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from setok_kernels.integrations.transformers.positions import sequential_positions
from setok_kernels.integrations.transformers.registry import Family, Modality, register_family


def positions_from_one(base: nn.Module, inputs: Mapping[str, Any], generating: bool) -> Tensor:
    """Return the positions (B, L) of a prompt without any; `generate` adds the 1 by itself."""
    positions = sequential_positions(base, inputs, generating)
    return positions if generating else positions + 1


IMAGE = Modality(
    placeholder="image_token_id",
    pixels="pixel_values",
    function="get_image_features",
    encoder="multi_modal_projector",
)

register_family(
    Family(model_type="paligemma", modalities=(IMAGE,), original_positions=positions_from_one)
)
