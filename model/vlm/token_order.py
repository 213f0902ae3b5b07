"""Order of an image's tokens in the text, and the tokens that an edited image repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from setok_kernels import Packed
from setokim.tokenizer.modeling_setok import VisualTokens
from setokim.tokenizer.token_statistics import ChannelUnits

# Fields of `Packed` with one row for each token.
_TOKEN_FIELDS = ("tokens", "images", "rows", "sizes", "seeds", "seed_positions", "centroids")

# Max distance of a token from the one that it repeats: a root mean square over blocks of channels,
# in units of each. Clusters of two images that differ in one object differ a little elsewhere too.
_SAME = 0.2


def source_images(input_ids: Tensor, image_token_id: int, image_start_id: int) -> Tensor:
    """Return the source of each generated image: the last image before it in its row.

    Args:
        input_ids: (B, L) ids with one `<image>` for each of M images, after an `<img>` in generated
            images.
        image_token_id: id of `<image>`.
        image_start_id: id of `<img>`.

    Returns:
        (M,) int64 indices of images; -1 without an earlier image, and for images of a prompt.
    """
    rows, positions = (input_ids == image_token_id).nonzero().unbind(1)
    index = torch.arange(len(rows), device=rows.device)
    has_earlier = torch.zeros_like(rows, dtype=torch.bool)
    has_earlier[1:] = rows[1:] == rows[:-1]
    generated = input_ids[rows, (positions - 1).clamp(min=0)] == image_start_id
    return torch.where(has_earlier & generated, index - 1, -1)


def nearest_source(
    tokens: Tensor, cu_seqlens: Tensor, sources: Tensor, blocks: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the nearest token of each token's source image.

    Args:
        tokens: (S, D) tokens of all images, in units in which blocks of channels have equal scale.
        cu_seqlens: (M + 1,) offsets of the images' tokens.
        sources: (M,) index of each image's source, -1 without one.
        blocks: sizes of the blocks of channels; each block weighs the same in the distance.

    Returns:
        (S,) int64 index of the nearest token, and (S,) float32 distance, a root mean square over
        the blocks; -1 and infinity for images without a source or with an empty one.
    """
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    nearest = torch.full((len(tokens),), -1, device=tokens.device)
    distance = torch.full((len(tokens),), torch.inf, device=tokens.device)
    if not len(tokens) or not bool((sources >= 0).any()):
        return nearest, distance
    sizes = torch.tensor(blocks, device=tokens.device)
    scaled = tokens.float() / (len(blocks) * sizes.float()).sqrt().repeat_interleave(sizes)
    column = torch.arange(int(lengths.max()), device=tokens.device)
    inside = column < lengths[:, None]  # (M, R)
    index = torch.where(inside, starts[:, None] + column, 0)
    padded = scaled[index]  # (M, R, D)
    source = sources.clamp(min=0)
    distances = torch.cdist(padded, padded[source])  # (M, R, R)
    visible = inside[source] & (sources >= 0)[:, None]
    distances = distances.masked_fill(~visible[:, None], torch.inf)
    least, column = distances.min(-1)  # (M, R) each
    found = torch.where(least.isfinite(), starts[source][:, None] + column, -1)
    return found[inside], least[inside]


def source_order(
    tokens: Tensor, cu_seqlens: Tensor, sources: Tensor, blocks: Sequence[int]
) -> Tensor:
    """Reorder the tokens of an edited image to match the source image.

    Each token takes the rank of its nearest token in the source. An edit changes few tokens, but an
    order by position or size moves the others too. In this order an unchanged token follows the
    same token as in the source.

    Args:
        tokens: as in `nearest_source`.
        cu_seqlens: as in `nearest_source`.
        sources: as in `nearest_source`; -1 for images that keep their order.
        blocks: as in `nearest_source`.

    Returns:
        (S,) int64 permutation within images; tokens with the same nearest token keep their order.
    """
    nearest, _ = nearest_source(tokens, cu_seqlens, sources, blocks)
    return _order_by(nearest, cu_seqlens)


def largest_first(sizes: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Move the token with most patches, as a rule the background, to the front of each image.

    Args:
        sizes: (S,) number of patches of each token.
        cu_seqlens: (M + 1,) offsets of the images' tokens.

    Returns:
        (S,) int64 permutation within images; the other tokens keep their order.
    """
    image = _image_of(cu_seqlens, len(sizes))
    most = torch.zeros_like(cu_seqlens[1:], dtype=sizes.dtype)
    most = most.scatter_reduce(0, image, sizes, "amax")
    largest = sizes == most[image]
    # Of several largest tokens the first: those before it in the image are counted.
    earlier = largest.cumsum(0) - largest.long()
    first = largest & (earlier == earlier[cu_seqlens[:-1].long()[image]])
    return _order_by((~first).long(), cu_seqlens)


def pack_in_order(visual: VisualTokens, order: str) -> Packed:
    """Pack visual tokens in an order of `SetokimConfig.token_order`."""
    packed = visual.pack("raster" if order == "background" else order)
    if order == "background":
        packed = _reordered(packed, largest_first(packed.sizes, packed.cu_seqlens))
    return packed


def pack_like_sources(packed: Packed, units: ChannelUnits, sources: Tensor) -> Packed:
    """Reorder the tokens of edited images to match their source images, by `source_order`.

    Args:
        packed: tokens of M images.
        units: channel statistics of the tokens.
        sources: (M,) index of each image's source; -1 for images that keep their order.
    """
    normal = units.normalise(packed.tokens.detach())
    return _reordered(packed, source_order(normal, packed.cu_seqlens, sources, units.blocks))


def repeated_tokens(packed: Packed, units: ChannelUnits, sources: Tensor) -> Tensor:
    """Return the token of the source image that each token of an edited image repeats.

    The shape does not count: most of its variance is how patches fall on a boundary.

    Args:
        packed: tokens of M images.
        units: statistics of the tokens' blocks of content, centre, scale and shape.
        sources: (M,) index of each image's source, -1 without one.

    Returns:
        (S,) int64 index of the nearest token of the source; -1 for a token that is further from
        all, and for images without a source.
    """
    blocks = units.blocks[:-1]
    normal = units.normalise(packed.tokens.detach())[:, : sum(blocks)]
    nearest, distance = nearest_source(normal, packed.cu_seqlens, sources, blocks)
    return torch.where(distance <= _SAME, nearest, -1)


def _reordered(packed: Packed, order: Tensor) -> Packed:
    """Reorder the tokens of images by a permutation (S,) within images."""
    return replace(packed, **{name: getattr(packed, name)[order] for name in _TOKEN_FIELDS})


def _image_of(cu_seqlens: Tensor, number: int) -> Tensor:
    """Return (S,) int64, the image of each of `number` tokens."""
    images = torch.arange(len(cu_seqlens) - 1, device=cu_seqlens.device)
    return images.repeat_interleave(cu_seqlens.diff().long(), output_size=number)


def _order_by(keys: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Return (S,) int64, a stable sort by (S,) keys within images."""
    order = keys.sort(stable=True).indices
    image = _image_of(cu_seqlens, len(keys))
    return order[image[order].sort(stable=True).indices]
