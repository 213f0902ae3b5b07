"""Comparison of a `threshold_greedy` result with float64 bounds."""

import torch
from torch import Tensor

from setok_kernels.result import HardClusters
from setok_kernels.testing.hard import assert_hard_invariants, judge_labels
from setok_kernels.testing.images import Image, images
from setok_kernels.testing.intervals import Interval, cosine_bounds


def assert_valid_threshold_greedy(
    x: Tensor,
    out: HardClusters,
    threshold: float,
    token_mask: Tensor | None = None,
    input_roundoff: float = 0.0,
) -> None:
    """Assert that greedy claims in float64 may choose these centres, and labels are most similar.

    A pair whose similarity is within the rounding error bound of the threshold may count as
    neighbours or not. Tokens claim in descending order of their number of neighbours, ties lowest
    index. So a token is a centre if and only if no earlier centre is its neighbour. Without
    borderline pairs the result is unique.

    Args:
        x: input of the clustering, any layout.
        out: result of the clustering.
        threshold: threshold of the cosine similarity.
        token_mask: mask of valid tokens.
        input_roundoff: relative rounding of the inputs, see `assert_valid_decisions`.

    Raises:
        AssertionError: a decision is wrong; the message has image, token and decision.
    """
    assert_hard_invariants(x, out, token_mask)
    for image in images(x, out, token_mask):
        with image.named():
            if image.ok.any():
                _judge_image(image, out, threshold, input_roundoff)


def _judge_image(image: Image, out: HardClusters, threshold: float, input_roundoff: float) -> None:
    count = int(out.counts[image.index])
    centres = image.compact("centres", out.centres[image.index, :count])
    assert (centres.diff() > 0).all(), "centres do not ascend"
    similarity = cosine_bounds(image.x[image.ok], image.roundoff, input_roundoff)
    # The threshold may have been rounded to the dtype of the similarity.
    doubt = abs(threshold) * image.roundoff
    sure = (similarity.lo > threshold + doubt).fill_diagonal_(True)
    possible = (similarity.hi > threshold - doubt).fill_diagonal_(True)
    if threshold >= 1:
        possible = torch.eye(len(possible), dtype=torch.bool, device=possible.device)
    _judge_claims(image, sure, possible, centres)
    distance = Interval(-similarity.hi, -similarity.lo)
    judge_labels(image, distance, centres, out.labels[image.span][image.ok])


def _judge_claims(image: Image, sure: Tensor, possible: Tensor, centres: Tensor) -> None:
    """Assert that certain and possible neighbours (n, n) allow the centres (c,)."""
    near = sure[centres][:, centres].fill_diagonal_(False)
    if near.any():
        a, b = image.position[centres[near.nonzero()[0]]].tolist()
        raise AssertionError(f"centres {a} and {b} are neighbours: one claims the other")
    lower, upper = sure.sum(1), possible.sum(1)
    token = torch.arange(sure.shape[0], device=sure.device)
    # (c, n): the centre may come before the token.
    earlier = upper[centres, None] > lower
    earlier |= (upper[centres, None] == lower) & (centres[:, None] < token)
    claimed = (possible[centres] & earlier).any(0)
    claimed[centres] = True
    assert claimed.all(), (
        f"token {image.first(~claimed)} is no centre, and no earlier centre is its neighbour"
    )
