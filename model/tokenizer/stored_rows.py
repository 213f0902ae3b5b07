"""Statistics of the tokens of images, in place of the groups of patches behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from setok_kernels import Packed
from setok_kernels.packing import concatenate_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredRows:
    """Statistics of the tokens of B images, as files store them; an image uses its first rows.

    Attributes:
        counts: (B,) int64 number of tokens of each image.
        sizes: (B, R) int64 number of patches of each token.
        centres: (B, R) int64 seed patch of each token; -1 for the residual.
        centroids: (B, R, 2) float32 mean (y, x) of the patches of each token.
        grid: (H, W) of the patches, H · W = N.
        labels: (B, N) int64 row of each patch; None if not stored.
        masks: (B, R, N) float, fraction of each patch in each token; None if not stored.
    """

    counts: Tensor
    sizes: Tensor
    centres: Tensor
    centroids: Tensor
    grid: tuple[int, int]
    labels: Tensor | None = None
    masks: Tensor | None = None

    def occupied(self) -> Tensor:
        """Return (B, R) bool, the rows that hold a token."""
        row = torch.arange(self.sizes.shape[1], device=self.sizes.device)
        return row < self.counts[:, None]

    def pack(self, tokens: Tensor, order: Literal["seed", "raster", "size"] = "seed") -> Packed:
        """Pack tokens (B, R, D) as the groups behind them do, see `Rows.pack`.

        Raises:
            ValueError: `order` is unknown.
        """
        inside = torch.stack([self.centres // self.grid[1], self.centres % self.grid[1]], -1)
        seed_positions = torch.where(self.centres[..., None] < 0, -1, inside).float()
        statistics = (self.sizes, self.centres, seed_positions, self.centroids)
        return concatenate_rows(tokens, statistics, self.occupied(), order)
