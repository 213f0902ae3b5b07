"""Clusterings side by side."""

import torch

VALUES = ("masks", "counts", "labels", "density", "delta", "score")
DECISIONS = ("knn", "parent", "seeds", "counts")


def assert_bit_equal(a, b) -> None:
    """Values and decisions of two clusterings are the same bits."""
    for name in VALUES:
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    for name in DECISIONS:
        assert torch.equal(getattr(a.decisions, name), getattr(b.decisions, name)), name


def longest(out) -> int:
    """Most tokens of an image, as the operations take them."""
    return out.max_seqlen if out.cu_seqlens is not None else out.labels.shape[1]
