"""LLaVA, LLaVA-NeXT and LLaVA-OneVision."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from setok_kernels.integrations.transformers.clustering import Encoded
from setok_kernels.integrations.transformers.encoding import (
    flat_items,
    replaced_method,
    run_features,
)
from setok_kernels.integrations.transformers.registry import Family, Modality, register_family

PROJECTOR = "multi_modal_projector"


def encode_views(base: Any, modality: Modality, inputs: Mapping[str, Any]) -> Encoded:
    """Encode images of tiles, which the model lays out as an overview and a grid of lines.

    The overview and the grid of an image are a group each. The embedding behind each line of the
    grid, or behind an image of one tile, is layout.
    """
    packings: list[tuple[tuple, dict[str, Any]]] = []
    pack = base.pack_image_features

    def record(*args, **kwargs):
        packings.append((args, kwargs))
        return pack(*args, **kwargs)

    with replaced_method(base, "pack_image_features", record):
        output, encoded = run_features(base, modality, inputs)
    (tiles, *args), kwargs = packings[0]
    counts = [len(image) for image in tiles]

    def packed(plane: Tensor) -> Tensor:
        # (tiles, N, C) in the layout of the projected features, with 0 for layout tokens.
        newline = plane.new_zeros(plane.shape[-1])
        lines, _ = pack(list(plane.split(counts)), *args, **{**kwargs, "image_newline": newline})
        return torch.cat(lines)

    tokens, items = flat_items(output.pooler_output)
    # Interpolation of 1 gives 1, up to rounding.
    layout = packed(encoded.new_ones(*encoded.shape[:2], 1))[:, 0] < 0.5
    groups, starts, offset = [], torch.zeros_like(layout), 0
    # The lengths decide shapes: the model itself reads the sizes of the images to know them.
    lengths = [int((~image).sum()) for image in layout.split(items)]
    for count, item, length in zip(counts, items, lengths, strict=True):
        views = [length] if count == 1 else [encoded.shape[1], length - encoded.shape[1]]
        groups += views
        starts[offset] = True
        if count > 1:
            starts[offset + views[0]] = True
        offset += item
    ends = layout.cumsum(0) - layout.long()
    return Encoded(
        output=output,
        tokens=tokens,
        features=packed(encoded),
        items=items,
        groups=groups,
        layout=layout,
        lines=starts.cumsum(0) + ends,
    )


def encode_pooled_video(base: Any, modality: Modality, inputs: Mapping[str, Any]) -> Encoded:
    """Encode videos of pooled frames; a video is a group, and the embedding behind it is layout."""
    output, encoded = run_features(base, modality, inputs)
    tokens, items = flat_items(output.pooler_output)
    pooled = base.apply_pooling(encoded)  # (videos * frames, n, C)
    videos = len(items)
    if pooled.shape[:2].numel() == tokens.shape[0]:
        raise ValueError(
            "pixel_values_videos: expected a version of transformers whose get_video_features adds "
            "the line break, such as 5.23, got one that adds it in forward, such as 5.17"
        )
    features = pooled.reshape(videos, items[0] - 1, -1)
    features = torch.nn.functional.pad(features, (0, 0, 0, 1)).flatten(0, 1)
    token = torch.arange(tokens.shape[0], device=tokens.device)
    return Encoded(
        output=output,
        tokens=tokens,
        features=features,
        items=items,
        groups=[items[0] - 1] * videos,
        layout=token % items[0] == items[0] - 1,
        lines=token // items[0],
    )


IMAGE = Modality(
    placeholder="image_token_id",
    pixels="pixel_values",
    function="get_image_features",
    encoder=PROJECTOR,
)
TILED_IMAGE = Modality(
    placeholder="image_token_id",
    pixels="pixel_values",
    function="get_image_features",
    encoder=PROJECTOR,
    encode=encode_views,
)
VIDEO = Modality(
    placeholder="video_token_id",
    pixels="pixel_values_videos",
    function="get_video_features",
    encoder=PROJECTOR,
    encode=encode_pooled_video,
    key="video",
)

register_family(Family(model_type="llava", modalities=(IMAGE,)))
register_family(Family(model_type="llava_next", modalities=(TILED_IMAGE,)))
register_family(Family(model_type="llava_onevision", modalities=(TILED_IMAGE, VIDEO)))
