"""From clustered patches to one token per cluster (the token merger of SeTok)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setok_kernels import Clusters
from setokim.attention import Block, same_cluster
from setokim.positions import grid_positions, sincos_encoding, wave_encoding


class TokenMerger(nn.Module):
    """Patches of a cluster attend to one another, are averaged, and the means attend to each other.

    Clusters of all images go through one call: attention within clusters is block-diagonal, by a
    mask, and there is no loop over clusters. The mean is weighted by the tokens' own masks, so that
    the clustering gets a gradient too.

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
        self.width, self.outline_dim = width, outline_dim
        self.norm_in = nn.LayerNorm(feature_dim)
        self.project_in = nn.Linear(feature_dim, width)
        self.intra = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(intra_layers))
        self.norm_mean = nn.LayerNorm(width)
        # What the cluster is made of, and where its patches lie.
        self.project_mean = nn.Linear(width + outline_dim + 1, width)
        self.inter = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(inter_layers))
        self.norm_out = nn.LayerNorm(width)
        self.project_out = nn.Linear(width, token_dim - outline_dim)

    def forward(
        self, features: Tensor, clusters: Clusters, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Merges.

        Args:
            features: (B, N, feature_dim).
            clusters: of these N patches, padded layout.
            grid: (H, W) with H · W = N.

        Returns:
            tokens: (B, R, token_dim) with R = max_clusters + 1 rows, 0 where a row is nobody's
                label; row `counts` is the residual's.
            occupied: (B, R) bool, the rows that are somebody's label.
        """
        places = grid_positions(*grid, features.device)  # (N, 2)
        position = sincos_encoding(places, self.width)  # (N, width)
        x = self.project_in(self.norm_in(features)) + position.to(features.dtype)
        together = same_cluster(clusters.labels)
        for block in self.intra:
            x = block(x, together)
        share = self.membership(clusters).to(x.dtype)  # (B, R, N)
        mean = share @ self.norm_mean(x)  # (B, R, width)
        outline = share @ wave_encoding(places, self.outline_dim).to(x.dtype)  # (B, R, outline)
        area = clusters.sizes()[..., None].to(x.dtype) / x.shape[1]
        # An outline of unit length for a cluster of any size; the area says what it was.
        outline = outline / outline.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        tokens = self.project_mean(torch.cat([mean, outline, area.clamp(min=1e-6).log()], -1))
        occupied = clusters.occupied()
        for block in self.inter:
            tokens = block(tokens, occupied[:, None])
        tokens = torch.cat([self.project_out(self.norm_out(tokens)), outline], -1)
        return tokens.masked_fill(~occupied[..., None], 0), occupied

    @staticmethod
    def membership(clusters: Clusters) -> Tensor:
        """(B, R, N) share of each patch in the mean of its label's row; rows in use sum to 1."""
        rows = clusters.num_rows
        member = F.one_hot(clusters.labels.clamp(min=0), rows).mT  # (B, R, N)
        weight = clusters.masks * member * (clusters.labels >= 0)[:, None]
        # The largest of R masks that sum to 1 is at least 1 / R.
        return weight / weight.sum(-1, keepdim=True).clamp(min=0.5 / rows)
