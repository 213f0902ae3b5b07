"""Positions of visual tokens in the text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from setokim.tokenizer.token_codes import TokenCodes
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


def input_tokens(
    spliced: Spliced,
    tokens: Tensor,
    codes: TokenCodes | None,
    repeated: Tensor | None = None,
    sample: bool = False,
) -> Tensor:
    """Return visual tokens as the language model reads them in training.

    In generation it reads decoded codes of its own images. So in training it reads decoded codes
    too, from samples, and learns to go on from their errors. Repeated tokens are exact in both.

    Args:
        spliced: rows of the batch.
        tokens: (S, token_dim) visual tokens.
        codes: codes of the tokens; None for exact tokens everywhere.
        repeated: (S,) int64, at least 0 for tokens that repeat an earlier one; None for none.
        sample: flag to decode samples of the codes in place of their means.

    Returns:
        (S, token_dim).
    """
    generated = spliced.visual[(spliced.visual >= 0) & (spliced.labels != IGNORED)]
    if codes is None or not len(generated):
        return tokens
    if repeated is not None:
        generated = generated[repeated[generated] < 0]
    with torch.no_grad():
        return tokens.index_copy(0, generated, codes.recode(tokens[generated], sample))


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
