"""Numbers sorted by their owner, so that each owner walks its own in a fixed order."""

import torch
from torch import Tensor


def segments(labels: Tensor, offsets: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Members of each label of each image, one label after the other, tokens ascending.

    Returns:
        (T,) int64 tokens, and (B (rows + 1) + 1,) int64 where each label begins among them; label
        `rows` of an image are its masked tokens.
    """
    token = torch.arange(labels.shape[0], device=labels.device)
    image = torch.searchsorted(offsets[1:], token, right=True)
    label = torch.where(labels < 0, rows, labels)
    key, order = (image * (rows + 1) + label).to(torch.int32).sort(stable=True)
    segment = torch.arange((offsets.shape[0] - 1) * (rows + 1) + 1, device=labels.device)
    return order, torch.searchsorted(key, segment.to(torch.int32))


def sorted_by_target(targets: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Which edges end at each token, ascending.

    Args:
        targets: (edges,) int32 token where each edge ends, `total` for none.
        total: number of tokens.

    Returns:
        (edges,) int64 edges, and (total + 1,) int64 where those of each token begin among them.
    """
    key, order = targets.sort(stable=True)
    token = torch.arange(total + 1, device=targets.device, dtype=torch.int32)
    return order, torch.searchsorted(key, token)
