"""Position ids of shortened prompts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def sequential_positions(base: nn.Module, inputs: Mapping[str, Any], generating: bool) -> Tensor:
    """Return the position ids (B, L) that a text model gives a prompt without any.

    Args:
        base: model without its head.
        inputs: arguments of the call.
        generating: flag: the call is `generate`, which starts after the padding; `forward` counts
            the padding too.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    if generating and mask is not None:
        return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)


def close_gaps(positions: Tensor, keep: Tensor) -> Tensor:
    """Count positions as if the dropped tokens had never been there.

    Positions that do not continue those before them start a sequence, which counts on its own.

    Args:
        positions: (B, L) position ids of the prompts.
        keep: (B, L) bool, False for dropped tokens.
    """
    dropped = (~keep).long()
    before = dropped.cumsum(-1) - dropped
    starts = torch.ones_like(keep)
    starts[:, 1:] = positions.diff(dim=-1) != 1
    # `before` never falls, so the maximum so far is the value at the last start.
    return positions - (before - torch.where(starts, before, 0).cummax(-1).values)
