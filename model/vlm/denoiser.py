"""The network of the diffusion head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TIME_DIM = 256
_LONGEST_PERIOD = 10_000


class Denoiser(nn.Module):
    """Says what a token was before noise was added; 0 before training.

    A residual MLP of one token at a time, modulated in every layer by the timestep and a condition
    (adaLN-Zero: every layer is the identity at first).

    Args:
        token_dim: numbers of a token.
        condition_dim: numbers of a condition.
        width: of the MLP.
        layers: residual layers.
    """

    def __init__(self, token_dim: int, condition_dim: int, width: int, layers: int):
        super().__init__()
        self.project_condition = nn.Linear(condition_dim, width)
        self.time = nn.Sequential(nn.Linear(_TIME_DIM, width), nn.SiLU(), nn.Linear(width, width))
        self.project_in = nn.Linear(token_dim, width)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = _zeros(nn.Linear(width, 2 * width))
        self.project_out = _zeros(nn.Linear(width, token_dim))

    def embed(self, condition: Tensor) -> Tensor:
        """(S, condition_dim) to (S, width): what does not change from timestep to timestep."""
        return self.project_condition(condition.to(self.project_condition.weight.dtype))

    def forward(self, noisy: Tensor, timesteps: Tensor, embedded: Tensor) -> Tensor:
        """Removes noise.

        Args:
            noisy: (S, token_dim), float32.
            timesteps: (S,), integer.
            embedded: (S, width), conditions that went through `embed`.

        Returns:
            (S, token_dim).
        """
        dtype = self.project_in.weight.dtype
        given = F.silu(self.time(_time_encoding(timesteps).to(dtype)) + embedded)  # (S, width)
        x = self.project_in(noisy.to(dtype))
        for layer in self.layers:
            x = layer(x, given)
        shift, scale = self.modulation(given).chunk(2, -1)
        return self.project_out(self.norm(x) * (1 + scale) + shift)


class _Layer(nn.Module):
    """A residual MLP whose input and output are modulated; the identity at first."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = _zeros(nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        """(S, width) and (S, width) to (S, width)."""
        shift, scale, gate = self.modulation(given).chunk(3, -1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


def _zeros(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _time_encoding(timesteps: Tensor) -> Tensor:
    """Cosines and sines of (S,) timesteps at geometric frequencies, (S, _TIME_DIM) float32."""
    half = _TIME_DIM // 2
    exponents = torch.arange(half, device=timesteps.device) / half
    angle = timesteps.float()[:, None] * torch.exp(-math.log(_LONGEST_PERIOD) * exponents)
    return torch.cat([angle.cos(), angle.sin()], -1)
