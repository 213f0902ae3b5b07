"""Training of token codes on tokens alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from setokim.tokenizer.token_codes import TokenCodes, kl_to_normal
from setokim.training.codes.settings import CodeFitSettings
from setokim.training.schedule import cosine_with_warmup


def fit_codes(
    codes: TokenCodes, tokens: Tensor, settings: CodeFitSettings, block_weights: Sequence[float]
) -> float:
    """Fit the channel statistics, then train encoder and decoder; same result in every process.

    Args:
        codes: codes to train; its random number generator is not used.
        tokens: (S, token_dim) tokens of the training images.
        settings: number of steps and weights.
        block_weights: weights of the blocks of a token in the squared error.

    Returns:
        Mean squared error of decoded tokens over the last tenth of the steps.

    Raises:
        ValueError: there are no tokens, or one is not finite.
    """
    codes.fit(tokens)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(codes.parameters(), lr=settings.lr)
    errors: list[Tensor] = []
    with torch.enable_grad():
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * cosine_with_warmup(step, 0, settings.steps)
            chosen = torch.randint(len(tokens), (settings.batch_size,), generator=generator)
            batch = tokens[chosen.to(tokens.device)]
            mean, log_variance = codes.encode(batch)
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            decoded = codes.decode(mean + (0.5 * log_variance).exp() * noise)
            error = codes.token_error(decoded, batch, block_weights).mean()
            loss = error + settings.kl * kl_to_normal(mean, log_variance).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            errors.append(error.detach())
    optimizer.zero_grad()
    return float(torch.stack(errors[-math.ceil(settings.steps / 10) :]).mean())
