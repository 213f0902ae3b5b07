"""The judge of `threshold_greedy`."""

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
    """The centres are those that greedy claims in float64 may choose, labels the most similar.

    A pair whose similarity is within the rounding error bound of the threshold counts as either.
    Tokens claim in the order of how many neighbours they have, ties lowest index, so a token is a
    centre exactly when no centre before it is its neighbour; where no pair is in doubt this leaves
    one result.

    Args:
        x: the input of the clustering, any layout.
        out: its result.
        threshold: of the similarity.
        token_mask: its mask.
        input_roundoff: see `assert_valid_decisions`.

    Raises:
        AssertionError: names the image, the token and the decision.
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
    # It may have been rounded to the dtype of the similarity.
    doubt = abs(threshold) * image.roundoff
    sure = (similarity.lo > threshold + doubt).fill_diagonal_(True)
    possible = (similarity.hi > threshold - doubt).fill_diagonal_(True)
    if threshold >= 1:
        possible = torch.eye(len(possible), dtype=torch.bool, device=possible.device)
    _judge_claims(image, sure, possible, centres)
    distance = Interval(-similarity.hi, -similarity.lo)
    judge_labels(image, distance, centres, out.labels[image.span][image.ok])


def _judge_claims(image: Image, sure: Tensor, possible: Tensor, centres: Tensor) -> None:
    """Neighbours (n, n) that are certain and those that are possible; the centres (c,)."""
    near = sure[centres][:, centres].fill_diagonal_(False)
    if near.any():
        a, b = image.position[centres[near.nonzero()[0]]].tolist()
        raise AssertionError(f"centres {a} and {b} are neighbours: one claims the other")
    fewest, most = sure.sum(1), possible.sum(1)
    token = torch.arange(sure.shape[0], device=sure.device)
    # (c, n): the centre may come before the token.
    earlier = most[centres, None] > fewest
    earlier |= (most[centres, None] == fewest) & (centres[:, None] < token)
    claimed = (possible[centres] & earlier).any(0)
    claimed[centres] = True
    assert claimed.all(), (
        f"token {image.first(~claimed)} is no centre, and none before it has it as a neighbour"
    )
