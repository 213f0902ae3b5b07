"""Positions of M-RoPE (temporal, height, width) in a prompt that lost visual tokens."""

import torch
from torch import Tensor


def compacted(positions: Tensor, kinds: Tensor, valid: Tensor, kept: Tensor) -> Tensor:
    """Close the gaps that dropped tokens leave behind images and videos.

    A visual run is a sequence of placeholders of one image, video or frame. In the full prompt the
    text behind a run starts at the run's first position plus the longer side of its grid. Here it
    starts after the largest position that the run keeps, but never later than in the full prompt.
    Offsets within a run stay as they are.

    Args:
        positions: (3, B, L) temporal, vertical and horizontal positions of the full prompt.
        kinds: (B, L) kind of each token, 0 for text, 1 for images, 2 for videos.
        valid: (B, L) bool, False for padding.
        kept: (B, L) bool, True for tokens of the shortened prompt.

    Returns:
        (3, B, L) positions in the layout of the full prompt; meaningless where not kept, 0 for
        padding.
    """
    return (positions - _saved(positions, kinds, valid, kept & valid)).where(valid, 0)


def _saved(positions: Tensor, kinds: Tensor, valid: Tensor, kept: Tensor) -> Tensor:
    """Return (B, L) positions that the runs before each token leave free."""
    batch, length = kinds.shape
    visual = (kinds > 0) & valid
    before = torch.nn.functional.pad(kinds, (1, 0))[:, :-1]
    starts = visual & (kinds != before)
    # Slot 0 is for the tokens before the first run, which save nothing.
    run = starts.cumsum(1)
    slots = positions.new_zeros(batch, length + 1)

    # The first token of a run is at the same position on all three axes.
    first = slots.scatter_reduce(1, run, positions[0].where(starts, -1), "amax", include_self=False)
    # Text has three equal positions, and the text behind a run starts with the smallest.
    far = torch.iinfo(positions.dtype).max
    text = positions[0].where(~visual & valid, far)
    behind = slots.scatter_reduce(1, run, text, "amin", include_self=False)
    largest = positions.amax(0).where(visual & kept, -1)
    used = slots.scatter_reduce(1, run, largest, "amax", include_self=False) + 1
    saved = (behind - torch.maximum(used, first)).clamp(min=0)
    # Without text behind the last run nothing follows that could move.
    saved = saved.where((behind < far) & (first >= 0), 0)
    saved[:, 0] = 0
    before_run = saved.cumsum(1) - saved
    return torch.where(visual, before_run.gather(1, run), (before_run + saved).gather(1, run))
