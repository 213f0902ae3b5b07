"""Results of the clustering functions: labels or masks, statistics and decisions.

Results compare by identity, because `==` of tensors is elementwise.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from setok_kernels.packing import Rows
from setok_kernels.pytrees import TensorRecord, register


@register
@dataclass(frozen=True, eq=False)
class Decisions(TensorRecord):
    """Discrete choices of one clustering; `decisions=` replays them.

    All are int64 and local to their image; -1 means none. Packed input has (T, K) and (T,) in place
    of (B, N, K) and (B, N).

    Attributes:
        knn: (B, N, K) nearest neighbours by ascending distance, ties lowest index.
        parent: (B, N) nearest token of higher order; -1 for the top token of each image.
        seeds: (B, max_clusters) seed of each cluster.
        counts: (B,) number of seeds.
    """

    knn: Tensor
    parent: Tensor
    seeds: Tensor
    counts: Tensor

    def cut(self) -> "Decisions":
        """Return a copy with -1 in place of the seeds after `counts`, which may be lowered."""
        row = torch.arange(self.seeds.shape[1], device=self.seeds.device)
        return dataclasses.replace(self, seeds=self.seeds.where(row < self.counts[:, None], -1))


@register
@dataclass(frozen=True, eq=False)
class Clusters(Rows):
    """Result of `cluster_tokens`. Packed input has (T,) in place of (B, N).

    `masks`, `density`, `delta` and `score` are float32 (float64 for float64 input) and carry
    gradient. All other tensors are int64. A masked token has density, delta and score 0, label -1
    and zero masks. A non-finite token has density, delta and score 0 and belongs to the residual.

    Attributes:
        masks: (B, max_clusters + 1, N) in [0, 1]; packed: (max_clusters + 1, T). Row c < counts
            is the mask of seed c, row counts is the residual, later rows are 0. The rows of a
            valid token sum to 1.
        counts: (B,) number of seeds; the same tensor as `decisions.counts`.
        labels: (B, N) row of the largest mask, ties lowest row.
        density: (B, N) local density in (0, 1], Eq. 1.
        delta: (B, N) seed distance, Eq. 2, in units of the scaled distance.
        score: (B, N) density * delta, normalised by `score_norm`.
        decisions: discrete choices.
        grid: (H, W) for input (B, H, W, D), (T, H, W) for (B, T, H, W, D), else None; its N tokens
            are in raster order.
        cu_seqlens: (B + 1,) offsets of the images for packed input, else None.
        max_seqlen: maximum number of tokens of an image for packed input, else None.
    """

    masks: Tensor
    counts: Tensor
    labels: Tensor
    density: Tensor
    delta: Tensor
    score: Tensor
    decisions: Decisions
    grid: tuple[int, int] | tuple[int, int, int] | None = None
    cu_seqlens: Tensor | None = None
    max_seqlen: int | None = None

    @property
    def num_rows(self) -> int:
        """Rows of the masks: max_clusters + 1."""
        return self.masks.shape[-2]

    @property
    def centres(self) -> Tensor:
        """(B, max_clusters) seed of each row, -1 for none: `decisions.seeds`."""
        return self.decisions.seeds

    @property
    def last_row(self) -> Tensor:
        """(B,) row of the residual: `counts`."""
        return self.counts


@register
@dataclass(frozen=True, eq=False, kw_only=True)
class HardClusters(Rows):
    """Hard clustering: each token belongs to one centre. All tensors are int64, without gradient.

    Packed input has (T,) in place of (B, N). C is `num_clusters`, or without it the maximum number
    of tokens of an image.

    Attributes:
        labels: (B, N) row of each token's centre; -1 for masked and non-finite tokens, and in
            images without a centre.
        centres: (B, C) centre token of each row, local to its image; -1 for none.
        counts: (B,) number of centres.
        grid: (H, W) for input (B, H, W, D), (T, H, W) for (B, T, H, W, D), else None; its N tokens
            are in raster order.
        cu_seqlens: (B + 1,) offsets of the images for packed input, else None.
        max_seqlen: maximum number of tokens of an image for packed input, else None.
    """

    labels: Tensor
    centres: Tensor
    counts: Tensor
    grid: tuple[int, int] | tuple[int, int, int] | None = None
    cu_seqlens: Tensor | None = None
    max_seqlen: int | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows C."""
        return self.centres.shape[1]

    @property
    def last_row(self) -> Tensor:
        """(B,) row of the last centre, -1 for none."""
        return self.counts - 1


@register
@dataclass(frozen=True, eq=False, kw_only=True)
class DensityPeaks(HardClusters):
    """Result of `dpc_knn`. Values are float32 (float64 for float64 input), without gradient.

    Excluded tokens (masked or non-finite) have density, delta and score 0.

    Attributes:
        density: (B, N) exp(-mean squared distance to the k nearest, the token itself included),
            plus the noise if given.
        delta: (B, N) distance to the nearest token of higher order, at most the cap.
        score: (B, N) density * delta.
        knn: (B, N, k) nearest tokens by ascending distance, ties lowest index, -1 where absent.
        parent: (B, N) nearest token of higher order; -1 for the top token of each image.
    """

    density: Tensor
    delta: Tensor
    score: Tensor
    knn: Tensor
    parent: Tensor


def masks_of(out: Clusters | HardClusters) -> Tensor:
    """Return the masks of a result that was checked for mode "soft"."""
    assert isinstance(out, Clusters)
    return out.masks
