"""Token codes: a variational autoencoder of single visual tokens.

Most channels of a token are coefficients of its outline, and most of their variance is how the
patches fall on a boundary, which no text describes. A code of few channels keeps what the
detokenizer needs. The language model generates codes; the decoder turns them into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from setokim.tokenizer.shapelets import unit_shapes
from setokim.tokenizer.token_statistics import ChannelUnits, token_blocks


class TokenCodes(ChannelUnits):
    """Encoder of tokens as Gaussian codes, and decoder of codes; call `fit` before both.

    Kingma & Welling, "Auto-encoding variational Bayes", 2014. Tokens are encoded and decoded in
    units of their blocks of channels. Decoded shapes have unit length.

    Args:
        token_dim: channels of a token.
        outline_dim: number of its last channels, its shapelets.
        code_dim: channels of a code.
        width: hidden width of both MLPs.
    """

    def __init__(self, token_dim: int, outline_dim: int, code_dim: int, width: int):
        super().__init__(token_blocks(token_dim, outline_dim))
        self.token_dim, self.outline_dim, self.code_dim = token_dim, outline_dim, code_dim
        self.encoder = nn.Sequential(
            nn.Linear(token_dim, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, 2 * code_dim),
        )
        self.decoder = nn.Sequential(
            nn.Linear(code_dim, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, token_dim),
        )

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the codes of tokens.

        Args:
            tokens: (..., token_dim).

        Returns:
            (..., code_dim) each.

        Raises:
            RuntimeError: `fit` was not called.
        """
        self.check_fitted()
        normal = self.normalise(tokens).to(self.encoder[0].weight.dtype)
        mean, log_variance = self.encoder(normal).chunk(2, -1)
        return mean, log_variance

    def decode(self, codes: Tensor) -> Tensor:
        """Return the (..., token_dim) tokens of codes (..., code_dim), in the codes' dtype.

        Raises:
            RuntimeError: `fit` was not called.
        """
        self.check_fitted()
        normal = self.decoder(codes.to(self.decoder[0].weight.dtype))
        return unit_shapes(self.restore(normal), self.outline_dim).to(codes.dtype)

    def sample(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a sample of the codes of tokens, with their mean and log variance."""
        mean, log_variance = self.encode(tokens)
        noise = torch.randn_like(mean)
        return mean + (0.5 * log_variance).exp() * noise, mean, log_variance

    def recode(self, tokens: Tensor, sample: bool = False) -> Tensor:
        """Return tokens (..., token_dim) decoded from the means or from samples of their codes."""
        codes = self.sample(tokens)[0] if sample else self.encode(tokens)[0]
        return self.decode(codes).to(tokens)

    def token_error(self, decoded: Tensor, tokens: Tensor, weights: Sequence[float]) -> Tensor:
        """Return the (...) float32 weighted squared error of decoded tokens (..., token_dim).

        Args:
            decoded: (..., token_dim) decoded tokens.
            tokens: (..., token_dim) tokens.
            weights: weights of content, centre, scale and shape, each a mean over its channels in
                units of the block.
        """
        squares = (self.normalise(decoded) - self.normalise(tokens)).square()
        parts = [part.mean(-1) for part in squares.split(self.blocks, -1)]
        return torch.stack([w * part for w, part in zip(weights, parts, strict=True)]).sum(0)


def kl_to_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the (...) float32 divergence of Gaussians (..., D) from the standard normal."""
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
