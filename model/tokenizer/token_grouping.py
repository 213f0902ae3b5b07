"""Grouping of patches into tokens: clusters, grid cells, single patches or learned queries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setok_kernels import ClusterConfig, Clusters, Packed, TokenClustering
from setok_kernels.packing import Rows
from setokim.tokenizer.attention import Block
from setokim.tokenizer.pos_embed import grid_positions, sincos_encoding


@dataclass(frozen=True, kw_only=True)
class TokenGroups(Rows):
    """Groups of patches other than clusters; every row is occupied, with or without a label.

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
        """(B, R) patch with the max fraction in each row, ties lowest index."""
        return self.masks.argmax(-1)

    def occupied(self) -> Tensor:
        """Return (B, R) bool, all True."""
        return self.labels.new_ones(self.masks.shape[:2], dtype=torch.bool)

    def pack(
        self,
        tokens: Tensor,
        drop_empty: bool = False,
        order: Literal["seed", "raster", "size"] = "seed",
    ) -> Packed:
        """Pack tokens as `Rows` does, on the grid; all rows are kept unless `drop_empty`."""
        return super().pack(tokens, drop_empty, order)


@dataclass(frozen=True, kw_only=True)
class QueryGroups(TokenGroups):
    """Groups of patches by the attention of learned queries.

    Attributes:
        hidden_states: (B, R, width), the queries after the last layer.
        attention: (B, R, N) float32, attention weights of each query; rows sum to 1.
    """

    hidden_states: Tensor
    attention: Tensor


class ClusterGrouping(TokenClustering):
    """Clustering of the patches by features and positions.

    Args:
        config: options of the clustering.
        learnable: names of its learnable parameters.
        position_weight: ratio of the mean squared distance between two patches in positions to that
            in features.
        residual: "token" for a row of patches in no cluster, or "nearest" for the cluster with
            their largest mask, unless an image has no cluster.
    """

    def __init__(
        self,
        config: ClusterConfig,
        learnable: tuple[str, ...],
        position_weight: float,
        residual: str = "token",
    ):
        super().__init__(config, learnable)
        self.position_weight, self.residual = position_weight, residual

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Clusters:
        """Cluster features (B, N, D) on a grid (H, W) with H · W = N."""
        clusters = super().forward(self._with_positions(features, grid))
        return clusters if self.residual == "token" else _without_residual(clusters)

    def _with_positions(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Append weighted positions to features (B, N, D), unless their weight is 0."""
        if self.position_weight == 0:
            return features
        positions = grid_positions(*grid, features.device)
        spread = positions.var(0, unbiased=False).sum()
        if features.shape[0] == 0:
            # torch warns about the variance of an empty tensor.
            return F.pad(features, (0, 2))
        own = features.detach().float().var(1, unbiased=False).sum(-1)  # (B,)
        scale = (self.position_weight * own / spread.clamp(min=1e-12)).sqrt()
        return torch.cat([features, (scale[:, None, None] * positions).to(features.dtype)], -1)


def _without_residual(clusters: Clusters) -> Clusters:
    """Label the patches of the residual with the cluster of their largest mask."""
    masks, labels, counts = clusters.masks, clusters.labels, clusters.counts[:, None]
    row = torch.arange(masks.shape[1], device=masks.device)
    is_cluster = (row < counts)[..., None]  # (B, R, 1)
    # Without any cluster this is row 0, the residual itself.
    nearest = masks.masked_fill(~is_cluster, -1).argmax(1)
    return replace(clusters, labels=torch.where(labels == counts, nearest, labels))


class GridGrouping(nn.Module):
    """Cells of a grid, the same in every image; a patch belongs to the cell that holds its centre.

    Args:
        rows: number of rows of cells.
        columns: number of columns of cells.
    """

    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, features: Tensor, grid: tuple[int, int]) -> TokenGroups:
        """Return cells, in raster order, of features (B, N, D) on a grid (H, W) with H · W = N.

        Raises:
            ValueError: a side has fewer patches than cells, so that a cell would be empty.
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
        return TokenGroups(
            masks=masks.expand(batch, -1, -1), labels=labels.expand(batch, -1), grid=tuple(grid)
        )


class PatchGrouping(nn.Module):
    """Groups of one patch each."""

    def forward(self, features: Tensor, grid: tuple[int, int]) -> TokenGroups:
        """Return one group for each of the features (B, N, D) on a grid (H, W) with H · W = N."""
        batch, number = features.shape[:2]
        # Views of one image's mask, whose N rows for every image would be the largest tensor.
        masks = torch.eye(number, device=features.device).expand(batch, -1, -1)
        labels = torch.arange(number, device=features.device).expand(batch, -1)
        return TokenGroups(masks=masks, labels=labels, grid=tuple(grid))


class QueryGrouping(nn.Module):
    """Learned queries that attend to the patches, as in a Q-Former.

    A patch belongs to the queries in proportion to their attention weights for it in the last
    layer, averaged over heads.

    Args:
        feature_dim: number of the encoder's features.
        number: number of queries.
        width: width of the transformer.
        heads: number of heads.
        layers: number of layers, which attend to patches and other queries, at least 1.
        mlp_ratio: ratio of the MLPs' width to `width`.
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
        # As large as the patches, or all queries would soon be equal.
        self.queries = nn.Parameter(torch.randn(number, width))
        self.norm_in = nn.LayerNorm(feature_dim)
        self.project_in = nn.Linear(feature_dim, width)
        self.layers = nn.ModuleList(
            Block(width, heads, mlp_ratio, context_width=width) for _ in range(layers)
        )

    def forward(self, features: Tensor, grid: tuple[int, int]) -> QueryGroups:
        """Attend to features (B, N, D) on a grid (H, W) with H · W = N."""
        position = sincos_encoding(grid_positions(*grid, features.device), self.width)
        dtype = self.project_in.weight.dtype
        context = self.project_in(self.norm_in(features.to(dtype))) + position.to(dtype)
        x = self.queries.expand(features.shape[0], -1, -1)  # (B, R, width)
        everything = context.new_ones(1, 1, 1, dtype=torch.bool)
        allowed = [everything.expand(-1, -1, tokens.shape[1]) for tokens in (x, context)]
        for layer in self.layers[:-1]:
            x = layer(x, allowed[0], context, allowed[1])
        x, weights = self.layers[-1](x, allowed[0], context, allowed[1], return_weights=True)
        attention = weights.mean(1)  # (B, R, N)
        tiny = torch.finfo(attention.dtype).tiny
        masks = attention / attention.sum(1, keepdim=True).clamp(min=tiny)
        return QueryGroups(
            masks=masks,
            labels=masks.argmax(1),
            grid=tuple(grid),
            hidden_states=x,
            attention=attention,
        )


def _cells(patches: int, cells: int, device: torch.device) -> Tensor:
    """Return (patches,) int64, the cell along one side that holds the centre of each patch."""
    return (2 * torch.arange(patches, device=device) + 1) * cells // (2 * patches)
