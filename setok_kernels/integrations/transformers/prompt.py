"""Prompts without the placeholders of dropped visual tokens, padded again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Shortening:
    """Which tokens of a batch of prompts stay, and where. L is the length before, M after.

    Attributes:
        keep: (B, L) bool, False for dropped placeholders; padding counts as kept.
        index: (B, M) old position of each token; None if all stay where they are.
        valid: (B, M) bool, False for padding.
        placeholders: number of placeholders in each row, before and after, by modality.
        length: M.
    """

    keep: Tensor
    index: Tensor | None
    valid: Tensor | None
    placeholders: list[list[int]]
    length: int

    def apply(self, name: str, value: Tensor, padding: int) -> Tensor:
        """Shorten one input, (B, L) or (k, B, L)."""
        if self.index is None or self.valid is None:
            return value
        if value.shape[-2:] != self.keep.shape:
            raise ValueError(
                f"{name}: expected shape {tuple(self.keep.shape)}, got {tuple(value.shape)}"
            )
        index = self.index.expand(*value.shape[:-1], -1)
        return value.gather(-1, index).where(self.valid, padding)


def shorten(
    ids: Tensor, mask: Tensor | None, kept: list[tuple[int, Tensor]], side: str
) -> Shortening:
    """Find the tokens that stay. Waits once for the device.

    Args:
        ids: (B, L) token ids.
        mask: (B, L) attention mask, 0 for padding; None for no padding.
        kept: placeholder id and (T,) bool of each modality, True for placeholders that stay, in
            the order of the rows.
        side: side of the padding, "left" or "right", if the batch has none yet.

    Raises:
        ValueError: the numbers of placeholders and visual tokens differ.
    """
    keep = torch.ones_like(ids, dtype=torch.bool)
    columns = []
    for placeholder, stays in kept:
        places = ids == placeholder
        # Without a check of the number: it is made below, with the one transfer.
        order = (places.flatten().cumsum(0) - 1).clamp(0, stays.shape[0] - 1)
        stays = stays.to(ids.device)[order].view_as(places)
        columns += [places.sum(1), (places & stays).sum(1)]
        keep = keep & (stays | ~places)
    text = torch.ones_like(keep) if mask is None else mask != 0
    real = text & keep
    columns += [real.sum(1), (~text[:, :1]).sum(1), (~text[:, -1:]).sum(1)]
    table = torch.stack(columns, 1).tolist()
    placeholders = [row[: 2 * len(kept)] for row in table]
    for number, (placeholder, stays) in enumerate(kept):
        found = sum(row[2 * number] for row in table)
        if found != stays.shape[0]:
            raise ValueError(
                f"input_ids: expected {stays.shape[0]} tokens {placeholder}, one for each visual "
                f"token, got {found}"
            )
    if all(row[2 * n] == row[2 * n + 1] for row in placeholders for n in range(len(kept))):
        return Shortening(keep, None, None, placeholders, ids.shape[1])

    if any(row[-2] for row in table) or any(row[-1] for row in table):
        side = "left" if any(row[-2] for row in table) else "right"
    length = max(row[-3] for row in table)
    lengths = real.sum(1, keepdim=True)
    position = torch.arange(length, device=ids.device)
    # Stable: tokens stay in order, dropped ones and padding go to the side of the padding.
    if side == "left":
        index = real.int().argsort(dim=1, stable=True)[:, ids.shape[1] - length :]
        valid = position >= length - lengths
    else:
        index = (~real).int().argsort(dim=1, stable=True)[:, :length]
        valid = position < lengths
    return Shortening(keep, index, valid, placeholders, length)


def shorten_inputs(
    inputs: Mapping[str, Any], names: Mapping[str, int], shortening: Shortening, padding_id: int
) -> dict[str, Any]:
    """Return the inputs with every input per token shortened, and a mask where rows differ.

    Args:
        inputs: arguments of the call.
        names: inputs per token, and their padding.
        shortening: which tokens stay.
        padding_id: token id of padding.
    """
    short = dict(inputs)
    for name, padding in names.items():
        value = inputs.get(name)
        if value is not None:
            value = shortening.apply(name, value, padding_id if name == "input_ids" else padding)
            short[name] = value
    if inputs.get("attention_mask") is None and shortening.valid is not None:
        counted = {sum(row[1::2]) - sum(row[::2]) for row in shortening.placeholders}
        if len(counted) > 1:
            short["attention_mask"] = shortening.valid.long()
    return short
