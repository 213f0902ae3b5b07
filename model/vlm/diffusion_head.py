"""Diffusion head: generates one visual token at a time from a hidden state of the language model.

As in "Autoregressive image generation without vector quantization" (Li et al., 2024), a residual
MLP removes noise from a token, given the hidden state at the position before it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setok_kernels.extras import from_extra
from setokim.tokenizer.token_statistics import ChannelUnits, check_rows

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("v_prediction", "epsilon")
# Max weight of the squared error of a clean token. Without it the few timesteps with hardly any
# noise would dominate the loss: at the first of 1000 the weight is 24 000.
_MAX_WEIGHT = 10.0
_TIME_DIM = 256
_MAX_PERIOD = 10_000


class DiffusionHead(ChannelUnits):
    """Diffusion model of one token given a condition.

    The diffusion runs in normalised units: a token minus the mean of each channel, divided by the
    scale of its block of channels. The network predicts the clean token x0; before training it
    predicts 0, the mean token.

    With noise e and z = a x0 + s e, a² + s² = 1, the loss is the squared error of `prediction`:
    v = a e - s x0, or e itself. An error of x0 is 1 / s times as large in v, and a / s times as
    large in e. The square of this factor is bounded by 10.

    A network that predicts x0 trains faster than one that predicts v or e. Tokens lie near a
    surface of few dimensions, noise does not, and a narrow network need not carry noise through.
    Prefer "v_prediction": the error of e hardly weighs the noisiest timesteps, at which the
    condition decides the token.
    """

    def __init__(
        self,
        token_dim: int,
        condition_dim: int,
        width: int = 1024,
        layers: int = 3,
        steps: int = 1000,
        schedule: str = "squaredcos_cap_v2",
        prediction: str = "v_prediction",
        blocks: Sequence[int] | None = None,
    ):
        """Build the network; call `fit` before the first loss.

        Args:
            token_dim: channels of a token.
            condition_dim: channels of a condition.
            width: hidden width of the MLP.
            layers: number of residual layers.
            steps: number of timesteps in training.
            schedule: noise schedule, one of `SCHEDULES`, by the names of diffusers.
            prediction: target of the loss, one of `PREDICTIONS`.
            blocks: sizes of the blocks of channels, in the order of the channels. Each block has
                one scale and the same weight in the loss. None for one block of all channels.

        Raises:
            ValueError: a size is less than 1, a name is unknown, or the blocks do not sum to
                `token_dim`.
        """
        sizes = {
            "token_dim": token_dim,
            "condition_dim": condition_dim,
            "width": width,
            "layers": layers,
            "steps": steps,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule: expected one of {SCHEDULES}, got {schedule!r}")
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction: expected one of {PREDICTIONS}, got {prediction!r}")
        blocks = (token_dim,) if blocks is None else tuple(blocks)
        if not blocks or min(blocks) < 1 or sum(blocks) != token_dim:
            expected = f"sizes of at least 1 that sum to token_dim, {token_dim}"
            raise ValueError(f"blocks: expected {expected}, got {blocks}")
        super().__init__(blocks)
        self.token_dim, self.condition_dim = token_dim, condition_dim
        self.steps, self.schedule, self.prediction = steps, schedule, prediction
        self.network = Denoiser(token_dim, condition_dim, width, layers)

    def loss(
        self,
        tokens: Tensor,
        condition: Tensor,
        repeats: int = 4,
        generator: torch.Generator | None = None,
        weight: Tensor | None = None,
        noisiest: int = 0,
        base: Tensor | None = None,
    ) -> Tensor:
        """Return the mean squared error of the prediction at random timesteps.

        A token of many channels shows through much noise, so the condition matters at few timesteps
        only. The modules behind the condition train little at the others; `noisiest` adds timesteps
        at which the condition matters.

        Args:
            tokens: (S, token_dim) floating-point tokens. They get gradient too: detach them where
                the tokenizer shall not be trained.
            condition: (S, condition_dim) floating-point conditions.
            repeats: number of timesteps and noise samples for each token.
            generator: source of the timesteps, sampled first, and of the noise; None for torch's
                default generator.
            weight: (S,) weight of each token in the mean over tokens, at least 0; None for 1.
            noisiest: number of repeats at the last timestep, where only the condition carries
                information.
            base: (S, token_dim) tokens in units of the diffusion that are added to the network's
                output; None for 0.

        Returns:
            0-dim float32, under autocast too. Without tokens, or when all weights are 0, the loss
            is 0 and still depends on the condition and every parameter, so that ranks without
            tokens take part in the collectives of the others.

        Raises:
            ValueError: a shape does not fit, `repeats` is less than 1, or `noisiest` is not from 0
                to `repeats`.
            RuntimeError: `fit` was not called.
        """
        self.check_fitted()
        check_rows("tokens", tokens, self.token_dim)
        check_rows("condition", condition, self.condition_dim, len(tokens))
        if base is not None:
            check_rows("base", base, self.token_dim, len(tokens))
        if repeats < 1:
            raise ValueError(f"repeats: expected at least 1, got {repeats}")
        if not 0 <= noisiest <= repeats:
            raise ValueError(f"noisiest: expected 0 to {repeats}, got {noisiest}")
        if weight is not None and weight.shape != tokens.shape[:1]:
            expected = f"one weight per token, ({len(tokens)},)"
            raise ValueError(f"weight: expected {expected}, got {tuple(weight.shape)}")
        if len(tokens) == 0:
            used = [condition, *self.parameters(), *([] if base is None else [base])]
            return sum(tensor.float().sum() for tensor in used) * 0.0

        device, rows = tokens.device, repeats * len(tokens)
        source = device if generator is None else generator.device
        timesteps = torch.randint(self.steps, (rows,), generator=generator, device=source)
        noise = torch.randn(rows, self.token_dim, generator=generator, device=source).to(device)
        timesteps[: noisiest * len(tokens)] = self.steps - 1
        timesteps = timesteps.to(device)
        clean = self.normalise(tokens).repeat(repeats, 1)
        levels = signal_levels(self.schedule, self.steps).to(device)  # (steps,)
        signal = levels[timesteps, None]  # (rows, 1), a²
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise  # (rows, token_dim)
        embedded = self.network.embed(condition).repeat(repeats, 1)
        predicted = self.network(noisy, timesteps, embedded).float()
        if base is not None:
            predicted = predicted + base.float().repeat(repeats, 1)
        squares = (predicted - clean).square()
        # Each block weighs the same: a position has two channels, an appearance a hundred.
        parts = squares.split(self.blocks, dim=1)
        error = torch.stack([part.mean(1) for part in parts]).mean(0)  # (rows,)
        ratio = 1.0 if self.prediction == "v_prediction" else signal[:, 0]
        error = error * (ratio / (1 - signal[:, 0])).clamp(max=_MAX_WEIGHT)
        error = error.view(repeats, -1).mean(0)  # (S,)
        if weight is None:
            return error.mean()
        weight = weight.float()
        total = weight.sum()
        return (error * weight).sum() / torch.where(total > 0, total, 1.0)

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor,
        unconditional: Tensor | None = None,
        guidance: float = 1.0,
        steps: int = 25,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        temperature: float = 1.0,
        noise: Tensor | None = None,
        base: Tensor | None = None,
        unconditional_base: Tensor | None = None,
    ) -> Tensor:
        """Sample one token for each condition by DDIM, which adds no noise between its steps.

        Args:
            condition: (S, condition_dim) floating-point conditions.
            unconditional: (S, condition_dim) conditions of the unconditional prediction; required
                for guidance.
            guidance: weight g of classifier-free guidance, u + g (c - u); 1 for none.
            steps: number of sampling steps, a divisor of the steps in training.
            generator: source of the initial noise: one for all rows, or one for each row, so that
                a row does not depend on its batch; None for torch's default generator.
            temperature: factor of the initial noise.
            noise: (S, token_dim) initial noise itself, standard normal.
            base: (S, token_dim) base of the conditional prediction, see `loss`.
            unconditional_base: (S, token_dim) base of the unconditional prediction.

        Returns:
            (S, token_dim) float32 tokens in their original units.

        Raises:
            ValueError: a shape does not fit, `steps` is not a divisor, guidance lacks
                `unconditional`, or both `generator` and `noise` are given.
            RuntimeError: `fit` was not called.
        """
        self.check_fitted()
        check_rows("condition", condition, self.condition_dim)
        if steps < 1 or self.steps % steps:
            raise ValueError(f"steps: expected a divisor of {self.steps}, got {steps}")
        embedded = self.network.embed(condition)  # (S, width)
        guided = guidance != 1
        if guided:
            if unconditional is None:
                expected = f"a tensor for guidance {guidance}"
                raise ValueError(f"unconditional: expected {expected}, got None")
            check_rows("unconditional", unconditional, self.condition_dim, len(condition))
            embedded = torch.cat([embedded, self.network.embed(unconditional)])
            if base is not None:
                base = torch.cat([base, unconditional_base])
        sampler = scheduler(self.schedule, self.steps)
        sampler.set_timesteps(steps)
        x = temperature * self._initial_noise(condition, generator, noise)  # (S, token_dim)
        for timestep in sampler.timesteps.tolist():
            rows = x.repeat(2, 1) if guided else x
            time = torch.full((len(rows),), timestep, device=x.device)
            clean = self.network(rows, time, embedded).float()
            if base is not None:
                clean = clean + base.float()
            if guided:
                # The same as guidance of v or of the noise: each is affine in the clean token.
                conditional, unconditioned = clean.chunk(2)
                clean = unconditioned + guidance * (conditional - unconditioned)
            x = sampler.step(clean, timestep, x).prev_sample
        return self.restore(x)

    def _initial_noise(
        self,
        condition: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        noise: Tensor | None,
    ) -> Tensor:
        shape, device = (len(condition), self.token_dim), condition.device
        if noise is not None:
            if generator is not None:
                raise ValueError("noise: expected None beside a generator, got a tensor")
            check_rows("noise", noise, self.token_dim, len(condition))
            return noise.to(device).float()
        if generator is None or isinstance(generator, torch.Generator):
            source = device if generator is None else generator.device
            return torch.randn(shape, generator=generator, device=source).to(device)
        if len(generator) != len(condition):
            expected = f"one for each of {len(condition)} conditions"
            raise ValueError(f"generator: expected {expected}, got {len(generator)}")
        rows = [torch.randn(shape[1:], generator=g, device=g.device).to(device) for g in generator]
        return torch.stack(rows) if rows else torch.empty(shape, device=device)


class Denoiser(nn.Module):
    """Residual MLP that predicts the clean token from a noisy one; 0 before training.

    The timestep and a condition modulate each layer (adaLN-Zero: each layer is the identity before
    training).

    Args:
        token_dim: channels of a token.
        condition_dim: channels of a condition.
        width: hidden width of the MLP.
        layers: number of residual layers.
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
        """Embed (S, condition_dim) conditions as (S, width), once for all timesteps."""
        return self.project_condition(condition.to(self.project_condition.weight.dtype))

    def forward(self, noisy: Tensor, timesteps: Tensor, embedded: Tensor) -> Tensor:
        """Predict the clean tokens.

        Args:
            noisy: (S, token_dim) float32 noisy tokens.
            timesteps: (S,) integer timesteps.
            embedded: (S, width) conditions from `embed`.

        Returns:
            (S, token_dim) clean tokens in units of the diffusion.
        """
        dtype = self.project_in.weight.dtype
        modulator = F.silu(self.time(_time_encoding(timesteps).to(dtype)) + embedded)  # (S, width)
        x = self.project_in(noisy.to(dtype))
        for layer in self.layers:
            x = layer(x, modulator)
        shift, scale = self.modulation(modulator).chunk(2, -1)
        return self.project_out(self.norm(x) * (1 + scale) + shift)


class _Layer(nn.Module):
    """Residual MLP with modulated input and output; the identity before training."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = _zeros(nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, modulator: Tensor) -> Tensor:
        """Apply the layer to (S, width), modulated by (S, width)."""
        shift, scale, gate = self.modulation(modulator).chunk(3, -1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


def _zeros(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _time_encoding(timesteps: Tensor) -> Tensor:
    """Return (S, _TIME_DIM) float32 cosines and sines of (S,) timesteps, geometric frequencies."""
    half = _TIME_DIM // 2
    exponents = torch.arange(half, device=timesteps.device) / half
    angle = timesteps.float()[:, None] * torch.exp(-math.log(_MAX_PERIOD) * exponents)
    return torch.cat([angle.cos(), angle.sin()], -1)


def scheduler(schedule: str, steps: int) -> DDIMScheduler:
    """Return the DDIM scheduler of a network that predicts clean tokens.

    Args:
        schedule: noise schedule, one of `SCHEDULES`.
        steps: number of timesteps in training.

    Raises:
        MissingExtraError: diffusers is not installed.
    """
    # Imported here: diffusers takes longer to import than torch, and only training and image
    # generation need it.
    with from_extra("generate"):
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        steps,
        beta_schedule=schedule,
        clip_sample=False,
        # Other spacings start below the last timestep or have uneven steps.
        timestep_spacing="trailing",
        prediction_type="sample",
    )


@functools.lru_cache
def signal_levels(schedule: str, steps: int) -> Tensor:
    """Return (steps,) float32, a² of each timestep; errors as in `scheduler`."""
    return scheduler(schedule, steps).alphas_cumprod
