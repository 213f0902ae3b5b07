"""Detokenizer: reconstruction of images from sets of tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setokim.tokenizer.attention import Block
from setokim.tokenizer.pos_embed import grid_positions, sincos_encoding
from setokim.tokenizer.shapelets import decode_shapelets, taper


class Detokenizer(nn.Module):
    """Transformer decoder whose learned queries attend to the tokens and become patches of pixels.

    The first layers attend to the tokens, as in a Q-Former; the others are those of a vision
    transformer. Their pixels are added to a background of flat colours, one for each token, which
    the tokens' shapelets mix in every pixel. So edges are as sharp as the shapelets, not as the
    patches. A larger image has a larger grid: queries are interpolated, positions computed.

    Args:
        token_dim: number of channels of a token.
        outline_dim: number of its last channels, the shapelets of the token's position.
        width: width of the transformer.
        heads: number of heads.
        cross_layers: number of layers that attend to the tokens.
        layers: number of layers after them.
        grid: rows and columns of the queries at the native size.
        patch_size: side of a patch in pixels.
        mlp_ratio: ratio of the MLPs' width to `width`.
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
        # Weight of a token's shapelets in each head of each layer, and bias of the token itself.
        self.heed = nn.Linear(token_dim, 2 * cross_layers * heads)
        self.cross = nn.ModuleList(
            Block(width, heads, mlp_ratio, context_width=token_dim) for _ in range(cross_layers)
        )
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.to_pixels = nn.Linear(width, 3 * patch_size**2)
        # Weight of each coefficient of a shape.
        self.emphasis = nn.Parameter(initial_emphasis(outline_dim))
        # For each token its colour, the weight of its shapelets, and its bias.
        self.to_ground = nn.Linear(token_dim, 5)

    def forward(
        self, tokens: Tensor, occupied: Tensor, size: tuple[int, int] | None = None
    ) -> Tensor:
        """Reconstruct images.

        Args:
            tokens: (B, R, token_dim).
            occupied: (B, R) bool, the rows that hold a token.
            size: height and width of the images in pixels; None for the native size.

        Returns:
            (B, 3, height, width), about [0, 1].
        """
        p = self.patch_size
        size = (self.grid[0] * p, self.grid[1] * p) if size is None else tuple(size)
        rows, columns = (max(1, -(-side // p)) for side in size)
        queries = self.queries[None]
        if (rows, columns) != self.grid:
            queries = F.interpolate(queries, (rows, columns), mode="bilinear")
        positions = grid_positions(rows, columns, tokens.device)
        encoding = sincos_encoding(positions, self.width).to(tokens.dtype)
        x = queries.flatten(2).mT + encoding  # (1, rows · columns, width)
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
        return pixels[..., : size[0], : size[1]] + self._background(tokens, context, occupied, size)

    def _biases(self, tokens: Tensor, context: Tensor, rows: int, columns: int) -> list[Tensor]:
        """Return the attention biases (B, heads, N, R) of each cross-attention layer."""
        inside = self._membership(tokens, rows, columns)
        gains = self.heed(context).unflatten(-1, (len(self.cross), 2, self.heads))
        gain, bias = gains.permute(2, 3, 0, 4, 1)[..., None].unbind(1)  # (layers, B, heads, R, 1)
        return [(g.exp() * inside[:, None] + o).mT for g, o in zip(gain, bias, strict=True)]

    def _background(
        self, tokens: Tensor, context: Tensor, occupied: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Return the background (B, 3, height, width): token colours, mixed by the shapelets."""
        colour, gain, bias = self.to_ground(context).split((3, 1, 1), -1)  # (B, R, 3 | 1 | 1)
        inside = self._membership(tokens, *size)  # (B, R, pixels)
        scores = (gain.exp() * inside + bias).masked_fill(~occupied[..., None], -torch.inf)
        # Without any token the softmax is over nothing.
        weights = scores.softmax(1).masked_fill(~occupied[..., None], 0)
        return (colour.mT @ weights).unflatten(-1, size)

    def _membership(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """Return the shapelets' indicators (B, R, rows · columns), about 1 inside and 0 outside."""
        shapelets = tokens[..., -self.outline_dim :]
        return decode_shapelets(shapelets, rows, columns, self.emphasis).to(tokens.dtype)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight whose gradients balance the adversarial loss."""
        return self.to_pixels.weight


def initial_emphasis(outline_dim: int) -> Tensor:
    """Return (outline_dim - POSE,), at which a softmax of indicators separates the tokens."""
    return 4 * taper(outline_dim)
