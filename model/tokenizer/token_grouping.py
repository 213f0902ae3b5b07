"""Which patches a token stands for: clusters, cells of a grid, single patches, or what is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setok_kernels import ClusterConfig, Clusters, Packed, TokenClustering
from setok_kernels.packing import Rows
from setokim.tokenizer.attention import Block
from setokim.tokenizer.pos_embed import grid_positions, sincos_encoding


@dataclass(frozen=True, kw_only=True)
class Parts(Rows):
    """Parts of images that are no clusters; every row is in use, whether a label names it or not.

    Attributes:
        masks: (B, R, N) in [0, 1], float32; the rows of a patch sum to 1.
        labels: (B, N) int64, row of the largest mask, ties lowest row.
        grid: (H, W) of the patches, H · W = N.
    """

    masks: Tensor
    labels: Tensor
    grid: tuple[int, int]
    cu_seqlens: None = None
    max_seqlen: None = None

    @property
    def num_rows(self) -> int:
        """R."""
        return self.masks.shape[1]

    @property
    def counts(self) -> Tensor:
        """(B,) R."""
        return self.labels.new_full(self.labels.shape[:1], self.num_rows)

    @property
    def last_row(self) -> Tensor:
        """(B,) R - 1."""
        return self.counts - 1

    @property
    def centres(self) -> Tensor:
        """(B, R) patch that belongs most to each row, ties lowest index."""
        return self.masks.argmax(-1)

    def occupied(self) -> Tensor:
        """(B, R) bool, True."""
        return self.labels.new_ones(self.masks.shape[:2], dtype=torch.bool)

    def pack(
        self,
        tokens: Tensor,
        drop_empty: bool = False,
        order: Literal["seed", "raster", "size"] = "seed",
    ) -> Packed:
        """As of `Rows`, on the grid; all rows are kept unless `drop_empty`."""
        return super().pack(tokens, drop_empty, order)


@dataclass(frozen=True, kw_only=True)
class Readings(Parts):
    """What learned queries have read.

    Attributes:
        states: (B, R, width), the queries after reading.
        share: (B, R, N) float32, how much of its attention each query gave to each patch; rows sum
            to 1.
    """

    states: Tensor
    share: Tensor


class ClusterPartition(TokenClustering):
    """The clustering of the patches, by their features and their places.

    Args:
        config: options of the clustering.
        learnable: which of its numbers learn.
        position_weight: the mean squared distance of two patches in their places, over that in
            their features.
    """

    def __init__(self, config: ClusterConfig, learnable: tuple[str, ...], position_weight: float):
        super().__init__(config, learnable)
        self.position_weight = position_weight

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Clusters:
        """Clusters of features (B, N, D) on a grid (H, W) with H · W = N."""
        return super().forward(self._place(features, grid))

    def _place(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Features (B, N, D), with positions beside them where these have weight."""
        if self.position_weight == 0:
            return features
        place = grid_positions(*grid, features.device)
        spread = place.var(0, unbiased=False).sum()
        if features.shape[0] == 0:
            # torch warns of a variance over nothing.
            return F.pad(features, (0, 2))
        own = features.detach().float().var(1, unbiased=False).sum(-1)  # (B,)
        scale = (self.position_weight * own / spread.clamp(min=1e-12)).sqrt()
        return torch.cat([features, (scale[:, None, None] * place).to(features.dtype)], -1)


class GridPartition(nn.Module):
    """Cells of a grid, the same in every picture; a patch is of the cell that its middle is in.

    Args:
        rows: of cells.
        columns: of cells.
    """

    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Parts:
        """Cells, line by line, of features (B, N, D) on a grid (H, W) with H · W = N.

        Raises:
            ValueError: there are fewer patches than cells along a side, so that a cell is empty.
        """
        if grid[0] < self.rows or grid[1] < self.columns:
            raise ValueError(
                f"token_grid: expected at most the {grid[0]} × {grid[1]} patches of the encoder, "
                f"got {self.rows} × {self.columns}"
            )
        cells = self.rows * self.columns
        y = _cells(grid[0], self.rows, features.device)
        x = _cells(grid[1], self.columns, features.device)
        labels = (y[:, None] * self.columns + x).flatten()  # (N,)
        masks = F.one_hot(labels, cells).T.float()
        batch = features.shape[0]
        return Parts(
            masks=masks.expand(batch, -1, -1), labels=labels.expand(batch, -1), grid=tuple(grid)
        )


class PatchPartition(nn.Module):
    """Every patch for itself."""

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Parts:
        """Parts of one patch each, of features (B, N, D) on a grid (H, W) with H · W = N."""
        batch, number = features.shape[:2]
        # Views of one image's: a mask of N rows for every image would be the largest tensor of all.
        masks = torch.eye(number, device=features.device).expand(batch, -1, -1)
        labels = torch.arange(number, device=features.device).expand(batch, -1)
        return Parts(masks=masks, labels=labels, grid=tuple(grid))


class QueryPartition(nn.Module):
    """Learned queries that read the patches, in the manner of a Q-Former.

    A patch belongs to the queries in proportion to the attention that they give it in the last
    layer, averaged over heads.

    Args:
        feature_dim: of the encoder's features.
        number: of queries.
        width: of the transformer.
        heads: number of heads.
        layers: that attend to the patches and to the other queries, at least 1.
        mlp_ratio: width of the MLPs over `width`.
    """

    def __init__(
        self,
        feature_dim: int,
        number: int,
        width: int,
        heads: int,
        layers: int,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        self.width = width
        # As large as what they read, or all would soon be the same.
        self.queries = nn.Parameter(torch.randn(number, width))
        self.norm_in = nn.LayerNorm(feature_dim)
        self.project_in = nn.Linear(feature_dim, width)
        self.layers = nn.ModuleList(
            Block(width, heads, mlp_ratio, context_width=width) for _ in range(layers)
        )

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Readings:
        """Reads features (B, N, D) on a grid (H, W) with H · W = N."""
        position = sincos_encoding(grid_positions(*grid, features.device), self.width)
        dtype = self.project_in.weight.dtype
        context = self.project_in(self.norm_in(features.to(dtype))) + position.to(dtype)
        states = self.queries.expand(features.shape[0], -1, -1)  # (B, R, width)
        everything = context.new_ones(1, 1, 1, dtype=torch.bool)
        seen = [everything.expand(-1, -1, x.shape[1]) for x in (states, context)]
        for layer in self.layers[:-1]:
            states = layer(states, seen[0], context, seen[1])
        states, weights = self.layers[-1](states, seen[0], context, seen[1], weighed=True)
        share = weights.mean(1)  # (B, R, N)
        masks = share / share.sum(1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
        return Readings(
            masks=masks, labels=masks.argmax(1), grid=tuple(grid), states=states, share=share
        )


def _cells(patches: int, cells: int, device: torch.device) -> Tensor:
    """(patches,) int64, along one side: the cell that the middle of each patch is in."""
    return (2 * torch.arange(patches, device=device) + 1) * cells // (2 * patches)
