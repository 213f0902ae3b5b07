"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images and videos of any size, M-RoPE, DeepStack."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from setok_kernels.integrations.transformers.clustering import Encoded
from setok_kernels.integrations.transformers.encoding import flat_items
from setok_kernels.integrations.transformers.families.mrope import compacted
from setok_kernels.integrations.transformers.positions import sequential_positions
from setok_kernels.integrations.transformers.prompt import Shortening
from setok_kernels.integrations.transformers.registry import Family, Modality, register_family

# Field of the features' output with one list of items for each early layer of the decoder.
DEEP = "deepstack_features"


def encode_grids(base: nn.Module, modality: Modality, inputs: Mapping[str, Any]) -> Encoded:
    """Encode images or videos of different grids; each is a group, all frames of a video too.

    The feature of a token is that of its four patches, one after the other.
    """
    function = getattr(base, modality.function)
    names = inspect.signature(function).parameters
    arguments = {name: inputs[name] for name in names if inputs.get(name) is not None}
    output = function(**arguments, return_dict=True)
    tokens, items = flat_items(output.pooler_output)
    features = output.last_hidden_state.reshape(tokens.shape[0], -1)
    order = _window_order(base, arguments)
    if order is not None:
        features = features[order.argsort()]
    planes = {}
    if getattr(output, DEEP, None):
        # Whole in transformers 5.17, split into items in 5.23.
        planes[DEEP] = [
            layer if isinstance(layer, Tensor) else torch.cat(list(layer))
            for layer in getattr(output, DEEP)
        ]
    return Encoded(
        output=output, tokens=tokens, features=features, items=items, groups=items, planes=planes
    )


def _window_order(base: nn.Module, arguments: Mapping[str, Any]) -> Tensor | None:
    """Return the index of each token in the order of Qwen2.5's windows, (T,); None without."""
    tower: Any = base.get_submodule("visual")
    if getattr(tower, "window_size", None) is None:
        return None
    from transformers.vision_utils import get_vision_window_index

    grid = next(value for name, value in arguments.items() if name.endswith("_grid_thw"))
    order, _ = get_vision_window_index(
        grid,
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
    )
    return order


def original_positions(base: Any, inputs: Mapping[str, Any], generating: bool) -> Tensor:
    """Return the (3, B, L) positions that the untouched model gives the full prompt."""
    positions = _rope_positions(base, inputs)
    if positions is None:
        return sequential_positions(base, inputs, generating).expand(3, -1, -1)
    return positions


def compact_positions(
    base: Any, inputs: Mapping[str, Any], shortening: Shortening, generating: bool
) -> Tensor | None:
    """Return (3, B, M) positions whose text continues after what an image has kept.

    None without images and videos, and without `mm_token_type_ids`: the model then counts in a
    line, or says what is missing.
    """
    positions = inputs.get("position_ids")
    if positions is None:
        positions = _rope_positions(base, inputs)
    if positions is None:
        return None
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    kinds = (ids == base.config.image_token_id).long() + 2 * (ids == base.config.video_token_id)
    valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
    # A fourth row in front counts the tokens of packed sequences.
    positions = compacted(positions[-3:], kinds, valid, shortening.keep)
    return shortening.apply("position_ids", positions, 0)


def remember_deltas(base: Any, short: Mapping[str, Any]) -> None:
    """Let the model continue a shortened prompt with the position behind its largest."""
    positions, mask = short.get("position_ids"), short.get("attention_mask")
    if positions is None:
        return
    if mask is None:
        mask = torch.ones_like(short["input_ids"])
    largest = positions[-3:].masked_fill(mask == 0, -1).amax((0, 2))
    base.rope_deltas = (largest + 1 - mask.sum(-1))[:, None]


def _rope_positions(base: Any, inputs: Mapping[str, Any]) -> Tensor | None:
    """Return the model's own (3, B, L) positions of the full prompt; None for a line."""
    grids = [inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")]
    if inputs.get("mm_token_type_ids") is None or all(grid is None for grid in grids):
        return None
    names = inspect.signature(base.get_rope_index).parameters
    arguments = {name: inputs[name] for name in names if inputs.get(name) is not None}
    return base.get_rope_index(**arguments)[0]


def _modality(kind: str, pixels: str) -> Modality:
    return Modality(
        placeholder=f"{kind}_token_id",
        pixels=pixels,
        function=f"get_{kind}_features",
        encoder="visual.merger",
        encode=encode_grids,
        key=kind,
    )


for _model_type in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"):
    register_family(
        Family(
            model_type=_model_type,
            modalities=(
                _modality("image", "pixel_values"),
                _modality("video", "pixel_values_videos"),
            ),
            original_positions=original_positions,
            compact_positions=compact_positions,
            remember=remember_deltas,
        )
    )
