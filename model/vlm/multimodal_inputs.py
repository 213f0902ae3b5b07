"""Visual tokens in the places that a text keeps for its pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from setokim.vlm.processing_setokim import IGNORED


@dataclass(frozen=True)
class Spliced:
    """Rows in which every picture has as many places as it has tokens.

    A place is of one token of text or one visual token. T is the length of the longest row.

    Attributes:
        ids: (B, T) int64; `<image>` in the places of visual tokens, 0 in padding.
        attention_mask: (B, T) int64, 0 in padding.
        labels: (B, T) int64, -100 where nothing is learnt; `<image>` where a picture is drawn.
        visual: (B, T) int64 number of the visual token among all, -1 in other places.
        image: (B, T) int64 number of the last picture that begins at or before the place, -1
            before the first of the row.
        segment: (B, T) int64 number of a `[SEG]` among all that are learnt, those cut off
            included; -1 in other places.
    """

    ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    visual: Tensor
    image: Tensor
    segment: Tensor

    def positions(self) -> Tensor:
        """(B, T) int64 position of each place in its row, not counting padding."""
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
    """Makes room for visual tokens; no loop over tokens, rows or pictures.

    Args:
        input_ids: (B, L) with one `<image>` for each of M pictures, in the pictures' order.
        attention_mask: (B, L), 0 for padding on either side.
        labels: (B, L), or None to learn nothing.
        cu_seqlens: (M + 1,) offsets of the pictures' tokens.
        image_token_id: the id of `<image>`.
        segment_id: the id of `[SEG]`.
        max_length: longest row; text beyond is cut off, and so are whole pictures.
        padding_side: of the result.

    Returns:
        The rows, of all ids that are not padding.

    Raises:
        ValueError: there are more or fewer pictures than places for them, or `max_length` cuts a
            picture in half.
    """
    labels = torch.full_like(input_ids, IGNORED) if labels is None else labels
    kept = attention_mask.bool()
    is_image = (input_ids == image_token_id) & kept
    pictures, places = cu_seqlens.shape[0] - 1, int(is_image.sum())
    if pictures != places:
        raise ValueError(f"input_ids: expected an <image> for each of {pictures}, got {places}")
    number = is_image.flatten().cumsum(0) - 1  # of the last picture up to here, over all rows
    width = kept.flatten().long()
    width[is_image.flatten()] = cu_seqlens.diff().long()
    source = torch.arange(width.shape[0], device=width.device).repeat_interleave(width)  # (P,)
    rows = source // input_ids.shape[1]
    lengths = width.view(input_ids.shape).sum(1)  # (B,)
    column = torch.arange(source.shape[0], device=rows.device) - (lengths.cumsum(0) - lengths)[rows]
    # Number of each image's place among all of them: visual tokens come in that order.
    here = is_image.flatten()[source]
    learnt = (input_ids == segment_id) & (labels != IGNORED) & kept
    first = is_image.sum(1).cumsum(0) - is_image.sum(1)  # (B,) pictures of the rows before
    last = number[source]
    fields = {
        "ids": (input_ids.flatten()[source], 0),
        "labels": (labels.flatten()[source], IGNORED),
        "visual": (torch.where(here, here.cumsum(0) - 1, -1), -1),
        "image": (torch.where(last >= first[rows], last, -1), -1),
        "segment": (_ordinal(learnt.flatten())[source], -1),
        "attention_mask": (torch.ones_like(source), 0),
    }
    longest = int(lengths.max())
    if max_length is not None and longest > max_length:
        _check_cut(column, here, last, rows, max_length)
        inside = column < max_length
        rows, column = rows[inside], column[inside]
        fields = {name: (value[inside], fill) for name, (value, fill) in fields.items()}
        lengths, longest = lengths.clamp(max=max_length), max_length
    if padding_side == "left":
        column = column + (longest - lengths)[rows]
    shape = (input_ids.shape[0], longest)

    def spread(value: Tensor, fill: int) -> Tensor:
        out = value.new_full(shape, fill)
        out[rows, column] = value
        return out

    return Spliced(**{name: spread(*pair) for name, pair in fields.items()})


def prompt_places(labels: Tensor) -> Tensor:
    """(B, T) bool, the places that nobody learns, apart from the last before each that is learnt.

    Args:
        labels: (B, T).
    """
    learnt = labels != IGNORED
    before = F.pad(learnt[:, 1:], (0, 1))
    return ~(learnt | before)


def _ordinal(chosen: Tensor) -> Tensor:
    """The number of each chosen entry among the chosen ones, -1 for the others."""
    return torch.where(chosen, chosen.cumsum(0) - 1, -1)


def _check_cut(column: Tensor, here: Tensor, image: Tensor, rows: Tensor, most: int) -> None:
    """No picture has tokens on both sides of the cut."""
    before, after = here & (column == most - 1), here & (column == most)
    halved = torch.isin(image[before], image[after])
    if bool(halved.any()):
        row = int(rows[before][halved][0])
        raise ValueError(
            f"max_length: expected a cut between pictures, got {most}, which is in the middle of "
            f"one in row {row}"
        )
