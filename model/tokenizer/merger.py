"""From parts of a picture to one token each (the token merger of SeTok)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setok_kernels import Clusters
from setokim.tokenizer.attention import Block, SetsBySize, same_cluster
from setokim.tokenizer.pos_embed import grid_positions, sincos_encoding
from setokim.tokenizer.shapelets import outlines_of
from setokim.tokenizer.token_grouping import Parts, Readings


class _Merger(nn.Module):
    """What mergers begin and end with: patches in their places, and tokens that attend to others.

    Layers are not added by a constructor: their order decides what random weights they get.
    """

    def _add_beginning(self, feature_dim: int, width: int) -> None:
        self.norm_in = nn.LayerNorm(feature_dim)
        self.project_in = nn.Linear(feature_dim, width)

    def _begin(self, features: Tensor, places: Tensor) -> Tensor:
        """Patches (B, N, width) of features (B, N, feature_dim) and places (N, 2)."""
        position = sincos_encoding(places, self.width)  # (N, width)
        return self.project_in(self.norm_in(features)) + position.to(features.dtype)

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
        # What the part is made of, and where its patches lie.
        self.project_mean = nn.Linear(width + outline_dim + 1, width)
        self.inter = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)
        self.project_out = nn.Linear(width, token_dim - outline_dim)

    def _end(
        self, mean: Tensor, outline: Tensor, area: Tensor, occupied: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, R, token_dim), and `occupied`.

        Args:
            mean: (B, R, width) content.
            outline: (B, R, outline_dim) where its patches lie.
            area: (B, R, 1) share of the picture.
            occupied: (B, R) bool, the rows that are there.
        """
        outline = outline.to(mean.dtype)
        tokens = self.project_mean(torch.cat([mean, outline, area.clamp(min=1e-6).log()], -1))
        for block in self.inter:
            tokens = block(tokens, occupied[:, None])
        tokens = torch.cat([self.project_out(self.norm_out(tokens)), outline], -1)
        return tokens.masked_fill(~occupied[..., None], 0), occupied


class TokenMerger(_Merger):
    """Patches of a cluster attend to one another, are averaged, and the means attend to each other.

    Clusters of all images go through one call, without a loop over them: on a CPU attention within
    clusters goes by groups of clusters of about the same size. Elsewhere it is block-diagonal, by a
    mask, as the sizes would have to be waited for. The mean is weighted by the tokens' own masks,
    so that the clustering gets a gradient too.

    Args:
        feature_dim: of the encoder's features.
        width: of both transformers.
        token_dim: of the tokens that leave; the last `outline_dim` of it are the outline.
        outline_dim: numbers that say where the patches of a cluster lie, less than `token_dim`.
        heads: number of heads.
        intra_layers: layers within clusters.
        inter_layers: layers between the tokens of an image.
        mlp_ratio: width of the MLPs over `width`.
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
    ):
        super().__init__()
        self._add_beginning(feature_dim, width)
        self.intra = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(intra_layers))
        self._add_ending(width, token_dim, outline_dim, heads, inter_layers, mlp_ratio)

    def forward(
        self, features: Tensor, clusters: Clusters | Parts, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Merges.

        Args:
            features: (B, N, feature_dim).
            clusters: of these N patches, padded layout; or other parts.
            grid: (H, W) with H · W = N.

        Returns:
            tokens: (B, R, token_dim) with R = max_clusters + 1 rows, 0 where a row is nobody's
                label; row `counts` is the residual's.
            occupied: (B, R) bool, the rows that are somebody's label.
        """
        places = grid_positions(*grid, features.device)  # (N, 2)
        x = self._begin(features, places)
        x = self._within(x, clusters, by_size=x.device.type == "cpu")
        share = self.membership(clusters)  # (B, R, N)
        mean = share.to(x.dtype) @ self.norm_mean(x)  # (B, R, width)
        outline = outlines_of(share, grid, self.outline_dim)
        area = clusters.sizes()[..., None].to(x.dtype) / x.shape[1]
        return self._end(mean, outline, area, clusters.occupied())

    def _within(self, x: Tensor, clusters: Clusters | Parts, by_size: bool) -> Tensor:
        """Patches (B, N, width) after the layers within clusters."""
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
    def membership(clusters: Clusters | Parts) -> Tensor:
        """(B, R, N) share of each patch in the mean of its label's row; rows in use sum to 1."""
        rows = clusters.num_rows
        member = F.one_hot(clusters.labels.clamp(min=0), rows).mT  # (B, R, N)
        weight = clusters.masks * member * (clusters.labels >= 0)[:, None]
        # The largest of R masks that sum to 1 is at least 1 / R.
        return weight / weight.sum(-1, keepdim=True).clamp(min=0.5 / rows)


class PatchMerger(_Merger):
    """`TokenMerger` for parts of one patch each, which have nothing to attend to within.

    Args:
        feature_dim: of the encoder's features.
        width: of the transformer.
        token_dim: of the tokens that leave; the last `outline_dim` of it are the outline.
        outline_dim: numbers that say where a patch lies, less than `token_dim`.
        heads: number of heads.
        inter_layers: layers between the tokens of an image.
        mlp_ratio: width of the MLPs over `width`.
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
    ):
        super().__init__()
        self._add_beginning(feature_dim, width)
        self._add_ending(width, token_dim, outline_dim, heads, inter_layers, mlp_ratio)

    def forward(
        self, features: Tensor, parts: Parts, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, token_dim) of features (B, N, feature_dim), and that all are there."""
        places = grid_positions(*grid, features.device)  # (N, 2)
        x = self._begin(features, places)
        each = torch.eye(x.shape[1], device=x.device)[None]
        outline = outlines_of(each, grid, self.outline_dim).expand(x.shape[0], -1, -1)
        area = x.new_full((*x.shape[:2], 1), 1 / x.shape[1])
        return self._end(self.norm_mean(x), outline, area, parts.occupied())


class QueryMerger(_Merger):
    """The end of `TokenMerger` for what learned queries have read.

    Args:
        width: of the queries and of the transformer.
        token_dim: of the tokens that leave; the last `outline_dim` of it are the outline.
        outline_dim: numbers that say where a query looks, less than `token_dim`.
        heads: number of heads.
        inter_layers: layers between the tokens of an image.
        mlp_ratio: width of the MLPs over `width`.
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
        self, features: Tensor, parts: Readings, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, R, token_dim) of what was read, and that all are there."""
        mean = self.norm_mean(parts.states)
        outline = outlines_of(parts.share, grid, self.outline_dim)
        area = parts.masks.mean(-1, keepdim=True).to(mean.dtype)
        return self._end(mean, outline, area, parts.occupied())
