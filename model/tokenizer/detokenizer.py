"""From a set of tokens back to a picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setokim.tokenizer.attention import Block
from setokim.tokenizer.pos_embed import grid_positions, sincos_encoding
from setokim.tokenizer.shapelets import drawn_outlines, taper


class Detokenizer(nn.Module):
    """Learned queries on a grid read the tokens and become patches of pixels.

    The first layers attend to the tokens, as a Q-Former does, the others are those of a vision
    transformer. What they draw lies on a ground of flat colours, one of each token, mixed in every
    pixel by the tokens' outlines: edges are as sharp as outlines are, not as patches. A larger
    picture takes a larger grid: queries are interpolated, positions computed.

    Args:
        token_dim: of the tokens.
        outline_dim: of their last numbers, the outline of where each belongs.
        width: of the transformer.
        heads: number of heads.
        cross_layers: layers that attend to the tokens.
        layers: layers after them.
        grid: rows and columns of the queries at the native size.
        patch_size: side of a patch in pixels.
        mlp_ratio: width of the MLPs over `width`.
    """

    def __init__(
        self,
        token_dim: int,
        outline_dim: int,
        width: int,
        heads: int,
        cross_layers: int,
        layers: int,
        grid: tuple[int, int],
        patch_size: int,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        self.grid, self.patch_size, self.width = tuple(grid), patch_size, width
        self.queries = nn.Parameter(0.02 * torch.randn(width, *grid))  # (width, rows, columns)
        self.outline_dim, self.heads = outline_dim, heads
        self.norm_tokens = nn.LayerNorm(token_dim)
        # How much each head of each layer heeds a token's outline, and the token for itself.
        self.heed = nn.Linear(token_dim, 2 * cross_layers * heads)
        self.cross = nn.ModuleList(
            Block(width, heads, mlp_ratio, context_width=token_dim) for _ in range(cross_layers)
        )
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.to_pixels = nn.Linear(width, 3 * patch_size**2)
        # How much each coefficient of a shape counts.
        self.emphasis = nn.Parameter(first_emphasis(outline_dim))
        # Of each token: its colour, how much its outline counts, and it for itself.
        self.to_ground = nn.Linear(token_dim, 5)

    def forward(
        self, tokens: Tensor, occupied: Tensor, size: tuple[int, int] | None = None
    ) -> Tensor:
        """Draws.

        Args:
            tokens: (B, R, token_dim).
            occupied: (B, R) bool, the tokens that are there.
            size: height and width of the picture in pixels, any; None for the native one.

        Returns:
            (B, 3, height, width), about [0, 1].
        """
        p = self.patch_size
        size = (self.grid[0] * p, self.grid[1] * p) if size is None else tuple(size)
        rows, columns = (max(1, -(-side // p)) for side in size)
        queries = self.queries[None]
        if (rows, columns) != self.grid:
            queries = F.interpolate(queries, (rows, columns), mode="bilinear")
        places = grid_positions(rows, columns, tokens.device)
        position = sincos_encoding(places, self.width).to(tokens.dtype)
        x = queries.flatten(2).mT + position  # (1, rows · columns, width)
        x = x.expand(tokens.shape[0], -1, -1)
        everything = occupied.new_ones(1, 1, rows * columns)
        context = self.norm_tokens(tokens)
        for block, bias in zip(
            self.cross, self._biases(tokens, context, rows, columns), strict=True
        ):
            x = block(x, everything, context, occupied[:, None], bias)
        for block in self.blocks:
            x = block(x, everything)
        patches = self.to_pixels(self.norm(x)).unflatten(1, (rows, columns))
        patches = patches.unflatten(-1, (3, p, p))  # (B, rows, columns, 3, p, p)
        pixels = patches.permute(0, 3, 1, 4, 2, 5).flatten(2, 3).flatten(-2)
        # The last row and column of patches reach beyond a size that is no multiple of p.
        return pixels[..., : size[0], : size[1]] + self._ground(tokens, context, occupied, size)

    def _biases(self, tokens: Tensor, context: Tensor, rows: int, columns: int) -> list[Tensor]:
        """(B, heads, N, R) for each layer that attends to the tokens: is this place the token's?"""
        here = self._here(tokens, rows, columns)
        heed = self.heed(context).unflatten(-1, (len(self.cross), 2, self.heads))
        gain, own = heed.permute(2, 3, 0, 4, 1)[..., None].unbind(1)  # (layers, B, heads, R, 1)
        return [(g.exp() * here[:, None] + o).mT for g, o in zip(gain, own, strict=True)]

    def _ground(
        self, tokens: Tensor, context: Tensor, occupied: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """(B, 3, height, width), the tokens' colours mixed by their outlines."""
        colour, gain, own = self.to_ground(context).split((3, 1, 1), -1)  # (B, R, 3 | 1 | 1)
        here = self._here(tokens, *size)  # (B, R, pixels)
        scores = (gain.exp() * here + own).masked_fill(~occupied[..., None], -torch.inf)
        # Without any token the softmax is over nothing.
        share = scores.softmax(1).masked_fill(~occupied[..., None], 0)
        return (colour.mT @ share).unflatten(-1, size)

    def _here(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """(B, R, rows · columns), whether each place is in the outline of each token."""
        outlines = tokens[..., -self.outline_dim :]
        return drawn_outlines(outlines, rows, columns, self.emphasis).to(tokens.dtype)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight by which the adversarial loss is balanced."""
        return self.to_pixels.weight


def first_emphasis(outline_dim: int) -> Tensor:
    """(outline_dim - POSE,), such that a softmax of drawn outlines tells inside from outside."""
    return 4 * taper(outline_dim)
