"""What the clustering returns: masks and statistics, and the decisions behind them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Decisions:
    """The discrete choices of one clustering; pass them back as `decisions=` to replay it.

    All are int64 and local to their image; -1 stands where there is none. Packed input has (T, K)
    and (T,) in place of (B, N, K) and (B, N).

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


@dataclass(frozen=True)
class Clusters:
    """Result of `cluster_tokens`. Packed input has (T,) in place of (B, N).

    `masks`, `density`, `delta` and `score` are float32 (float64 for float64 input) and carry
    gradient; everything else is int64. A masked token has density, delta, score 0, label -1 and
    zero masks. A non-finite token has density, delta, score 0 and belongs to the residual.

    Attributes:
        masks: (B, max_clusters + 1, N) in [0, 1]; packed: (max_clusters + 1, T). Row c < counts
            is the mask of seed c, row counts the residual, later rows are 0. The rows of a valid
            token sum to 1.
        counts: (B,) number of seeds; the same tensor as `decisions.counts`.
        labels: (B, N) row of the largest mask, ties lowest row.
        density: (B, N) local density in (0, 1], Eq. 1.
        delta: (B, N) seed distance, Eq. 2, in units of the scaled distance.
        score: (B, N) density * delta, normalised by `score_norm`.
        decisions: the discrete choices.
        grid: (H, W) for input (B, H, W, D), else None; N = H * W in raster order.
        cu_seqlens: (B + 1,) offsets of the images for packed input, else None.
        max_seqlen: longest image of packed input, else None.
    """

    masks: Tensor
    counts: Tensor
    labels: Tensor
    density: Tensor
    delta: Tensor
    score: Tensor
    decisions: Decisions
    grid: tuple[int, int] | None = None
    cu_seqlens: Tensor | None = None
    max_seqlen: int | None = None

    @property
    def num_rows(self) -> int:
        """Rows of the masks: max_clusters + 1."""
        return self.masks.shape[-2]

    def occupied(self) -> Tensor:
        """Which rows have members: (B, max_clusters + 1) bool, True where some label names it."""
        batch, rows = self.counts.shape[0], self.num_rows
        labels = self.labels
        if self.cu_seqlens is None:
            image = torch.arange(batch, device=labels.device)[:, None].expand_as(labels)
        else:
            position = torch.arange(labels.shape[0], device=labels.device)
            image = torch.searchsorted(self.cu_seqlens[1:].long(), position, right=True)
        # One extra column takes the masked tokens (label -1) and is cut off again.
        column = torch.where(labels < 0, rows, labels)
        hit = torch.zeros(batch, rows + 1, dtype=torch.bool, device=labels.device)
        hit[image.reshape(-1), column.reshape(-1)] = True
        return hit[:, :rows]

    def pack(self, tokens: Tensor, drop_empty: bool = True) -> tuple[Tensor, Tensor]:
        """Merged tokens of all images one after the other, as a language model reads them.

        The one function here that waits for the device: the number of tokens is data.

        Args:
            tokens: (B, max_clusters + 1, D) from `merge_tokens`.
            drop_empty: keep only rows that are some token's label; otherwise every seed's row and
                the residual row.

        Returns:
            packed: (sum, D) in image order, rows ascending; carries gradient.
            cu_seqlens: (B + 1,) int32 offsets of the images.

        Raises:
            ValueError: the first two dimensions of `tokens` do not fit.
        """
        expected = (self.counts.shape[0], self.num_rows)
        if tokens.dim() != 3 or tokens.shape[:2] != expected:
            raise ValueError(
                f"tokens: expected shape ({expected[0]}, {expected[1]}, D), "
                f"got {tuple(tokens.shape)}"
            )
        if drop_empty:
            keep = self.occupied()
        else:
            row = torch.arange(self.num_rows, device=tokens.device)
            keep = row <= self.counts[:, None]
        cu_seqlens = torch.zeros(expected[0] + 1, dtype=torch.int32, device=tokens.device)
        cu_seqlens[1:] = keep.sum(1).cumsum(0)
        return tokens[keep], cu_seqlens
