"""Token merger of SeTok: one token from each part of an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setok_kernels import Clusters
from setokim.tokenizer.attention import Block, SetsBySize, same_cluster
from setokim.tokenizer.pos_embed import grid_positions, sincos_encoding
from setokim.tokenizer.shapelets import encode_shapelets
from setokim.tokenizer.token_grouping import QueryGroups, TokenGroups
from setokim.tokenizer.token_statistics import ChannelUnits


class _Merger(nn.Module):
    """Base of the mergers: position encoding of the patches, and attention between the tokens.

    Layers are not added by a constructor, since their order determines their random weights.
    """

    def _add_beginning(self, feature_dim: int, width: int, feature_units: bool) -> None:
        self.feature_units = ChannelUnits((1,) * feature_dim) if feature_units else None
        self.norm_in = nn.LayerNorm(feature_dim)
        self.project_in = nn.Linear(feature_dim, width)

    def _begin(self, features: Tensor, positions: Tensor) -> Tensor:
        """Embed features (B, N, feature_dim) at positions (N, 2) as patches (B, N, width)."""
        if self.feature_units is not None:
            features = self.feature_units.normalise(features).to(features.dtype)
        encoding = sincos_encoding(positions, self.width)  # (N, width)
        return self.project_in(self.norm_in(features)) + encoding.to(features.dtype)

    def _add_ending(
        self,
        width: int,
        token_dim: int,
        outline_dim: int,
        heads: int,
        layers: int,
        mlp_ratio: float,
    ) -> None:
        self.width, self.outline_dim = width, outline_dim
        self.norm_mean = nn.LayerNorm(width)
        # Content of the part, its shapelets and its area.
        self.project_mean = nn.Linear(width + outline_dim + 1, width)
        self.inter = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)
        self.project_out = nn.Linear(width, token_dim - outline_dim)

    def _end(
        self, mean: Tensor, shapelets: Tensor, area: Tensor, occupied: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return tokens (B, R, token_dim), and `occupied`.

        Args:
            mean: (B, R, width) content.
            shapelets: (B, R, outline_dim) pose and shape of the part.
            area: (B, R, 1) fraction of the image.
            occupied: (B, R) bool, the rows that hold a part.
        """
        shapelets = shapelets.to(mean.dtype)
        tokens = self.project_mean(torch.cat([mean, shapelets, area.clamp(min=1e-6).log()], -1))
        for block in self.inter:
            tokens = block(tokens, occupied[:, None])
        tokens = torch.cat([self.project_out(self.norm_out(tokens)), shapelets], -1)
        return tokens.masked_fill(~occupied[..., None], 0), occupied


class TokenMerger(_Merger):
    """Merger of clusters: attention within each, a weighted mean, and attention between the means.

    All clusters go through one call, without a loop over them. On a CPU attention within clusters
    runs by groups of clusters of about the same size. Elsewhere a mask makes it block-diagonal,
    because reading the sizes would wait for the device. The tokens' own masks weight the mean, so
    that the clustering gets a gradient too.

    Args:
        feature_dim: number of the encoder's features.
        width: width of both transformers.
        token_dim: number of channels of an output token, shapelets included.
        outline_dim: number of its last channels, the shapelets of a cluster; below `token_dim`.
        heads: number of heads.
        intra_layers: number of layers within clusters.
        inter_layers: number of layers between the tokens of an image.
        mlp_ratio: ratio of the MLPs' width to `width`.
        feature_units: flag to read features in units of each channel; `feature_units.fit` sets
            them.
    """

    def __init__(
        self,
        feature_dim: int,
        width: int,
        token_dim: int,
        outline_dim: int,
        heads: int,
        intra_layers: int,
        inter_layers: int,
        mlp_ratio: float = 4.0,
        feature_units: bool = False,
    ):
        super().__init__()
        self._add_beginning(feature_dim, width, feature_units)
        self.intra = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(intra_layers))
        self._add_ending(width, token_dim, outline_dim, heads, inter_layers, mlp_ratio)

    def forward(
        self, features: Tensor, clusters: Clusters | TokenGroups, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Merge the patches of each cluster into a token.

        Args:
            features: (B, N, feature_dim).
            clusters: clusters of these N patches in padded layout, or other groups.
            grid: (H, W) with H · W = N.

        Returns:
            tokens: (B, R, token_dim) with R = max_clusters + 1 rows, 0 in rows that are no patch's
                label; row `counts` is the residual.
            occupied: (B, R) bool, the rows that are the label of a patch.
        """
        positions = grid_positions(*grid, features.device)  # (N, 2)
        x = self._begin(features, positions)
        x = self._within(x, clusters, by_size=x.device.type == "cpu")
        weights = self.membership(clusters)  # (B, R, N)
        mean = weights.to(x.dtype) @ self.norm_mean(x)  # (B, R, width)
        shapelets = encode_shapelets(weights, grid, self.outline_dim)
        area = clusters.sizes()[..., None].to(x.dtype) / x.shape[1]
        return self._end(mean, shapelets, area, clusters.occupied())

    def _within(self, x: Tensor, clusters: Clusters | TokenGroups, by_size: bool) -> Tensor:
        """Return patches (B, N, width) after the layers within clusters."""
        if not by_size:
            together = same_cluster(clusters.labels)
            for block in self.intra:
                x = block(x, together)
            return x
        sets = SetsBySize.of(clusters.labels, clusters.num_rows)
        x = sets.lay_out(x)
        for block in self.intra:
            x = block(x, sets)
        return sets.take_back(x)

    @staticmethod
    def membership(clusters: Clusters | TokenGroups) -> Tensor:
        """Return the weight (B, R, N) of each patch in its row's mean; occupied rows sum to 1."""
        rows = clusters.num_rows
        member = F.one_hot(clusters.labels.clamp(min=0), rows).mT  # (B, R, N)
        weight = clusters.masks * member * (clusters.labels >= 0)[:, None]
        # The largest of R masks that sum to 1 is at least 1 / R.
        return weight / weight.sum(-1, keepdim=True).clamp(min=0.5 / rows)


class PatchMerger(_Merger):
    """Merger of single patches, which have no attention within groups.

    Args:
        feature_dim: number of the encoder's features.
        width: width of the transformer.
        token_dim: number of channels of an output token, shapelets included.
        outline_dim: number of its last channels, the shapelets of a patch; below `token_dim`.
        heads: number of heads.
        inter_layers: number of layers between the tokens of an image.
        mlp_ratio: ratio of the MLPs' width to `width`.
        feature_units: as in `TokenMerger`.
    """

    def __init__(
        self,
        feature_dim: int,
        width: int,
        token_dim: int,
        outline_dim: int,
        heads: int,
        inter_layers: int,
        mlp_ratio: float = 4.0,
        feature_units: bool = False,
    ):
        super().__init__()
        self._add_beginning(feature_dim, width, feature_units)
        self._add_ending(width, token_dim, outline_dim, heads, inter_layers, mlp_ratio)

    def forward(
        self, features: Tensor, groups: TokenGroups, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Turn features (B, N, feature_dim) into tokens (B, N, token_dim), all rows occupied."""
        positions = grid_positions(*grid, features.device)  # (N, 2)
        x = self._begin(features, positions)
        each = torch.eye(x.shape[1], device=x.device)[None]
        shapelets = encode_shapelets(each, grid, self.outline_dim).expand(x.shape[0], -1, -1)
        area = x.new_full((*x.shape[:2], 1), 1 / x.shape[1])
        return self._end(self.norm_mean(x), shapelets, area, groups.occupied())


class QueryMerger(_Merger):
    """Merger of the groups of learned queries, which only attend to each other.

    Args:
        width: width of the queries and of the transformer.
        token_dim: number of channels of an output token, shapelets included.
        outline_dim: number of its last channels, the shapelets of a query's attention; below
            `token_dim`.
        heads: number of heads.
        inter_layers: number of layers between the tokens of an image.
        mlp_ratio: ratio of the MLPs' width to `width`.
    """

    def __init__(
        self,
        width: int,
        token_dim: int,
        outline_dim: int,
        heads: int,
        inter_layers: int,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        self._add_ending(width, token_dim, outline_dim, heads, inter_layers, mlp_ratio)

    def forward(
        self, features: Tensor, groups: QueryGroups, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Turn the groups into tokens (B, R, token_dim), all rows occupied."""
        mean = self.norm_mean(groups.hidden_states)
        shapelets = encode_shapelets(groups.attention, grid, self.outline_dim)
        area = groups.masks.mean(-1, keepdim=True).to(mean.dtype)
        return self._end(mean, shapelets, area, groups.occupied())
