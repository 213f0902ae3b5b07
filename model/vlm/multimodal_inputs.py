"""Visual tokens in the text: their positions, and the order of an image's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from setokim.vlm.processing_setokim import IGNORED


@dataclass(frozen=True)
class Spliced:
    """Rows of text with one position for each visual token.

    A position holds a text token or a visual token. T is the length of the longest row.

    Attributes:
        ids: (B, T) int64; `<image>` at visual tokens, 0 in padding.
        attention_mask: (B, T) int64, 0 in padding.
        labels: (B, T) int64, -100 where nothing is trained; `<image>` in generated images.
        visual: (B, T) int64 index of the visual token among all of the batch, -1 at other
            positions.
        image: (B, T) int64 index of the last image that begins at or before the position, -1
            before the first image of the row.
        segment: (B, T) int64 index of a `[SEG]` among all in the labels, those that are cut off
            included; -1 at other positions.
    """

    ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    visual: Tensor
    image: Tensor
    segment: Tensor

    def positions(self) -> Tensor:
        """Return the (B, T) int64 index of each position in its row, padding not counted."""
        return (self.attention_mask.cumsum(1) - 1).clamp(min=0)


def splice(
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor | None,
    cu_seqlens: Tensor,
    image_token_id: int,
    segment_id: int,
    max_length: int | None = None,
    padding_side: str = "right",
) -> Spliced:
    """Insert positions for visual tokens; no loop over tokens, rows or images.

    Args:
        input_ids: (B, L) ids with one `<image>` for each of M images, in their order.
        attention_mask: (B, L) int64, 0 in padding on either side.
        labels: (B, L) int64, -100 where nothing is trained; None to train nothing.
        cu_seqlens: (M + 1,) offsets of the images' tokens.
        image_token_id: id of `<image>`.
        segment_id: id of `[SEG]`.
        max_length: max length of a row; later text and images are cut off. None for no limit.
        padding_side: side of the result's padding, "right" or "left".

    Returns:
        Rows of all ids that are not padding.

    Raises:
        ValueError: the number of images is not that of `<image>`, or `max_length` cuts an image in
            two.
    """
    labels = torch.full_like(input_ids, IGNORED) if labels is None else labels
    kept = attention_mask.bool()
    is_image = (input_ids == image_token_id) & kept
    images, found = cu_seqlens.shape[0] - 1, int(is_image.sum())
    if images != found:
        raise ValueError(f"input_ids: expected an <image> for each of {images} images, got {found}")
    last = is_image.flatten().cumsum(0) - 1  # (B L,) last image so far, over all rows
    width = kept.flatten().long()
    width[is_image.flatten()] = cu_seqlens.diff().long()
    source = torch.arange(width.shape[0], device=width.device).repeat_interleave(width)  # (P,)
    rows = source // input_ids.shape[1]
    lengths = width.view(input_ids.shape).sum(1)  # (B,)
    column = torch.arange(source.shape[0], device=rows.device) - (lengths.cumsum(0) - lengths)[rows]
    is_visual = is_image.flatten()[source]  # (P,)
    is_segment = (input_ids == segment_id) & (labels != IGNORED) & kept
    first = is_image.sum(1).cumsum(0) - is_image.sum(1)  # (B,) number of images in earlier rows
    image = last[source]
    fields = {
        "ids": (input_ids.flatten()[source], 0),
        "labels": (labels.flatten()[source], IGNORED),
        # Visual tokens are packed in the order of their positions.
        "visual": (_ordinal(is_visual), -1),
        "image": (torch.where(image >= first[rows], image, -1), -1),
        "segment": (_ordinal(is_segment.flatten())[source], -1),
        "attention_mask": (torch.ones_like(source), 0),
    }
    longest = int(lengths.max())
    if max_length is not None and longest > max_length:
        _check_cut(column, is_visual, image, rows, max_length)
        inside = column < max_length
        rows, column = rows[inside], column[inside]
        fields = {name: (value[inside], fill) for name, (value, fill) in fields.items()}
        lengths, longest = lengths.clamp(max=max_length), max_length
    if padding_side == "left":
        column = column + (longest - lengths)[rows]
    shape = (input_ids.shape[0], longest)

    def scatter(value: Tensor, fill: int) -> Tensor:
        out = value.new_full(shape, fill)
        out[rows, column] = value
        return out

    return Spliced(**{name: scatter(*pair) for name, pair in fields.items()})


def prompt_positions(labels: Tensor) -> Tensor:
    """Return (B, T) bool, the positions of prompts without the last position of each.

    A prompt is a run of positions without labels. The hidden state of its last position predicts
    the first label after it.

    Args:
        labels: (B, T) int64, -100 where nothing is trained.
    """
    trained = labels != IGNORED
    last = F.pad(trained[:, 1:], (0, 1))
    return ~(trained | last)


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


def source_order(
    tokens: Tensor, cu_seqlens: Tensor, sources: Tensor, blocks: Sequence[int]
) -> Tensor:
    """Reorder the tokens of an edited image to match the source image.

    Each token takes the rank of its nearest token in the source. An edit changes few tokens, but an
    order by position or size moves the others too. In this order an unchanged token follows the
    same token as in the source.

    Args:
        tokens: (S, D) tokens of all images, in units in which blocks of channels have equal scale.
        cu_seqlens: (M + 1,) offsets of the images' tokens.
        sources: (M,) index of each image's source; -1 for images that keep their order.
        blocks: sizes of the blocks of channels; each block weighs the same in the distance.

    Returns:
        (S,) int64 permutation within images; tokens with the same nearest token keep their order.
    """
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    if not len(tokens) or not bool((sources >= 0).any()):
        return torch.arange(len(tokens), device=tokens.device)
    sizes = torch.tensor(blocks, device=tokens.device)
    scaled = tokens.float() / sizes.float().sqrt().repeat_interleave(sizes)
    column = torch.arange(int(lengths.max()), device=tokens.device)
    inside = column < lengths[:, None]  # (M, R)
    index = torch.where(inside, starts[:, None] + column, 0)
    padded = scaled[index]  # (M, R, D)
    source = sources.clamp(min=0)
    distances = torch.cdist(padded, padded[source])  # (M, R, R)
    distances = distances.masked_fill(~inside[source][:, None], torch.inf)
    rank = torch.where(sources[:, None] >= 0, distances.argmin(-1), column)
    order = rank.masked_fill(~inside, len(column)).argsort(dim=1, stable=True)  # (M, R)
    return index.gather(1, order)[inside]


def _ordinal(chosen: Tensor) -> Tensor:
    """Return the index of each chosen entry among the chosen ones, -1 for the others."""
    return torch.where(chosen, chosen.cumsum(0) - 1, -1)


def _check_cut(
    column: Tensor, is_visual: Tensor, image: Tensor, rows: Tensor, max_length: int
) -> None:
    """Raise if an image has tokens on both sides of the cut."""
    before, after = is_visual & (column == max_length - 1), is_visual & (column == max_length)
    halved = torch.isin(image[before], image[after])
    if bool(halved.any()):
        row = int(rows[before][halved][0])
        raise ValueError(
            f"max_length: expected a cut between images, got {max_length}, within an image of "
            f"row {row}"
        )
