"""Visual tokens out of the language model: a small diffusion model of one token at a time.

As in "Autoregressive image generation without vector quantization" (Li et al., 2024), a residual
MLP removes noise from a token, given the hidden state of the language model at its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from setokim.tokenizer.token_statistics import channel_units
from setokim.vlm.denoiser import Denoiser
from setokim.vlm.noise_schedule import SCHEDULES, scheduler, signal_levels

PREDICTIONS = ("v_prediction", "epsilon")
# Of the loss on the clean token. Without a bound, the few timesteps that have nearly no noise would
# be all of the loss: at the first of 1000 the weight is 24 000.
_MAX_WEIGHT = 10.0


class DiffusionHead(nn.Module):
    """Draws tokens from their distribution given a condition, and learns that distribution.

    The diffusion runs in normalised units: a token less the mean of its channel, over the scale of
    its block of channels. The network gives the clean token x0 (0 before training, which is the
    mean token), and `prediction` says whose squared error the loss is: with noise e and
    z = a x0 + s e, a² + s² = 1, that is v = a e - s x0, or e itself. An error of x0 is in v 1 / s
    times as large, and in e a / s times. The square of this factor is bounded by 10.

    A network that gives x0 learns faster than one that gives v or e: tokens lie near a surface of
    few dimensions, noise does not, and a narrow network need not carry it through. Prefer
    "v_prediction": the error in e hardly counts the timesteps that are nearly all noise, at which
    the condition decides what the token becomes.

    Attributes:
        mean: (token_dim,), in the state dict.
        scale: (token_dim,), equal within a block, in the state dict.
        fitted: 0-dim bool, whether `fit` was called, in the state dict.
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
        """Builds the network; `fit` must follow.

        Args:
            token_dim: numbers of a token.
            condition_dim: numbers of a condition.
            width: of the MLP.
            layers: residual blocks.
            steps: of the diffusion in training.
            schedule: of the noise, one of `SCHEDULES`, by the names of diffusers.
            prediction: what the loss measures, one of `PREDICTIONS`.
            blocks: sizes of the blocks of channels that have one scale each and count the same in
                the loss, in the order of the channels; all channels are one block when None.

        Raises:
            ValueError: A size is less than 1, a name is not known, or the blocks do not add up.
        """
        super().__init__()
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
        self.token_dim, self.condition_dim, self.blocks = token_dim, condition_dim, blocks
        self.steps, self.schedule, self.prediction = steps, schedule, prediction
        self.network = Denoiser(token_dim, condition_dim, width, layers)
        self.register_buffer("mean", torch.zeros(token_dim))
        self.register_buffer("scale", torch.ones(token_dim))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, tokens: Tensor) -> None:
        """Takes mean and scale from example tokens, as `channel_units` does.

        Args:
            tokens: (S, token_dim), S of at least 1.

        Raises:
            ValueError: The shape is another one, or a value is not finite.
        """
        _check_rows("tokens", tokens, self.token_dim)
        if len(tokens) == 0:
            raise ValueError("tokens: expected at least one row, got none")
        if not tokens.isfinite().all():
            raise ValueError("tokens: expected finite numbers, got NaN or infinity")
        mean, scale = channel_units(tokens, self.blocks)
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        self.fitted.fill_(True)

    def normalise(self, tokens: Tensor) -> Tensor:
        """(..., token_dim) float32, tokens in the units of the diffusion."""
        return (tokens.float() - self.mean) / self.scale

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
        """Mean squared error of the prediction at random timesteps.

        A token of many numbers shows through much noise, so the condition counts at few of the
        timesteps. What conditions the head learns little from the others: let some be `noisiest`.

        Args:
            tokens: (S, token_dim), floating point. Gets gradient too: detach what shall not learn.
            condition: (S, condition_dim), floating point.
            repeats: timesteps and noises for each token.
            generator: of the timesteps, drawn first, and the noises; torch's own when None.
            weight: (S,), at least 0, of each token in the mean over tokens; all 1 when None.
            noisiest: how many of the repeats are at the last timestep, where the condition is
                all there is.
            base: (S, token_dim) in units of the diffusion, what the network's answer is added to;
                None for nothing.

        Returns:
            0-dim float32, whatever autocast says. Without tokens, or when all weights are 0, it is
            0 and still depends on the condition and every parameter, so that ranks without tokens
            do not hang.

        Raises:
            ValueError: A shape does not fit, `repeats` is less than 1, or `noisiest` is none of
                0 to `repeats`.
            RuntimeError: `fit` was not called.
        """
        self._check_fitted()
        _check_rows("tokens", tokens, self.token_dim)
        _check_rows("condition", condition, self.condition_dim, len(tokens))
        if base is not None:
            _check_rows("base", base, self.token_dim, len(tokens))
        if repeats < 1:
            raise ValueError(f"repeats: expected at least 1, got {repeats}")
        if not 0 <= noisiest <= repeats:
            raise ValueError(f"noisiest: expected 0 to {repeats}, got {noisiest}")
        if weight is not None and weight.shape != tokens.shape[:1]:
            expected = f"one number per token, ({len(tokens)},)"
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
        answer = self.network(noisy, timesteps, embedded).float()
        if base is not None:
            answer = answer + base.float().repeat(repeats, 1)
        squares = (answer - clean).square()
        # All blocks count the same: a place has two numbers, and what is there a hundred.
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
        """Draws one token for each condition, by DDIM, which adds no noise on the way.

        Args:
            condition: (S, condition_dim), floating point.
            unconditional: (S, condition_dim), what stands for no condition; needed for guidance.
            guidance: g of classifier-free guidance, u + g (c - u); 1 is none.
            steps: of the sampler, a divisor of the steps in training.
            generator: of the first noise: one for all rows, or one for each row, so that what a
                row becomes does not depend on its batch; torch's own when None.
            temperature: multiplies the first noise.
            noise: (S, token_dim), standard normal, the first noise itself.
            base: as of `loss`.
            unconditional_base: the same beside `unconditional`.

        Returns:
            (S, token_dim) float32, in units of the tokens.

        Raises:
            ValueError: A shape does not fit, `steps` is no divisor, guidance lacks `unconditional`,
                or both `generator` and `noise` were given.
            RuntimeError: `fit` was not called.
        """
        self._check_fitted()
        _check_rows("condition", condition, self.condition_dim)
        if steps < 1 or self.steps % steps:
            raise ValueError(f"steps: expected a divisor of {self.steps}, got {steps}")
        embedded = self.network.embed(condition)  # (S, width)
        guided = guidance != 1
        if guided:
            if unconditional is None:
                expected = f"a tensor for guidance {guidance}"
                raise ValueError(f"unconditional: expected {expected}, got None")
            _check_rows("unconditional", unconditional, self.condition_dim, len(condition))
            embedded = torch.cat([embedded, self.network.embed(unconditional)])
            if base is not None:
                base = torch.cat([base, unconditional_base])
        sampler = scheduler(self.schedule, self.steps)
        sampler.set_timesteps(steps)
        x = temperature * self._first_noise(condition, generator, noise)  # (S, token_dim)
        for timestep in sampler.timesteps.tolist():
            rows = x.repeat(2, 1) if guided else x
            time = torch.full((len(rows),), timestep, device=x.device)
            clean = self.network(rows, time, embedded).float()
            if base is not None:
                clean = clean + base.float()
            if guided:
                # Of clean tokens as of v and of noise: one is affine in the other.
                conditional, free = clean.chunk(2)
                clean = free + guidance * (conditional - free)
            x = sampler.step(clean, timestep, x).prev_sample
        return x * self.scale.float() + self.mean.float()

    def _first_noise(
        self,
        condition: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        noise: Tensor | None,
    ) -> Tensor:
        shape, device = (len(condition), self.token_dim), condition.device
        if noise is not None:
            if generator is not None:
                raise ValueError("noise: expected None beside a generator, got a tensor")
            _check_rows("noise", noise, self.token_dim, len(condition))
            return noise.to(device).float()
        if generator is None or isinstance(generator, torch.Generator):
            source = device if generator is None else generator.device
            return torch.randn(shape, generator=generator, device=source).to(device)
        if len(generator) != len(condition):
            expected = f"one for each of {len(condition)} conditions"
            raise ValueError(f"generator: expected {expected}, got {len(generator)}")
        rows = [torch.randn(shape[1:], generator=g, device=g.device).to(device) for g in generator]
        return torch.stack(rows) if rows else torch.empty(shape, device=device)

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise RuntimeError("DiffusionHead: expected fit(tokens) to be called first")


def _check_rows(name: str, rows: Tensor, width: int, number: int | None = None) -> None:
    if (
        rows.dim() != 2
        or rows.shape[1] != width
        or not rows.is_floating_point()
        or number not in (None, len(rows))
    ):
        shape = f"({'S' if number is None else number}, {width})"
        got = f"{rows.dtype} {tuple(rows.shape)}"
        raise ValueError(f"{name}: expected a floating-point {shape}, got {got}")
