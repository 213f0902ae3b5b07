"""Sorted segments of the members of clusters, for sums in a fixed order without atomics."""

import torch
from torch import Tensor


def segments(labels: Tensor, offsets: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Sort the tokens by image and label, tokens ascending.

    Returns:
        (T,) int64 tokens, and (B (rows + 1) + 1,) int64 first member of each label; label `rows` of
        an image has its masked tokens.
    """
    token = torch.arange(labels.shape[0], device=labels.device)
    image = torch.searchsorted(offsets[1:], token, right=True)
    label = torch.where(labels < 0, rows, labels)
    key, order = (image * (rows + 1) + label).to(torch.int32).sort(stable=True)
    segment = torch.arange((offsets.shape[0] - 1) * (rows + 1) + 1, device=labels.device)
    return order, torch.searchsorted(key, segment.to(torch.int32))
