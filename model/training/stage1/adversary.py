"""Adversarial training of stage 1: the discriminator, its losses and its optimizer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from setokim.training.discriminator import PatchDiscriminator
from setokim.training.engine import Engine
from setokim.training.losses import adaptive_weight, hinge_discriminator_loss, hinge_generator_loss
from setokim.training.schedule import parameter_groups
from setokim.training.stage1.settings import Stage1Settings


class Adversary:
    """A patch discriminator with its optimizer and both losses of adversarial training.

    Args:
        engine: engine of the run.
        settings: settings of the run; `losses.adversarial` is not 0.
        size: height and width of the images in pixels.

    Attributes:
        module: the discriminator, in what distributed training puts around it.
        optimizer: optimizer of the discriminator.

    Raises:
        ValueError: the images are too small.
    """

    def __init__(self, engine: Engine, settings: Stage1Settings, size: tuple[int, int]):
        self._engine, self._settings = engine, settings
        discriminator = PatchDiscriminator(width=settings.discriminator_width)
        if min(size) < discriminator.min_size:
            expected = f"at least {discriminator.min_size} pixels for the discriminator"
            raise ValueError(f"model: expected sides of {expected}, got {size}")
        own = settings.discriminator
        groups = parameter_groups(discriminator, own.lr, own.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=own.betas)
        self.module, self.optimizer = engine.accelerator.prepare(discriminator, optimizer)

    @property
    def unwrapped(self) -> PatchDiscriminator:
        """The discriminator alone."""
        return self._engine.accelerator.unwrap_model(self.module)

    def generator_loss(
        self, losses: Mapping[str, Tensor], images: Tensor, last_layer: Tensor
    ) -> Tensor:
        """Return the generator's adversarial loss, balanced with the reconstruction.

        Args:
            losses: losses of stage 1 by name.
            images: (B, 3, h, w) of the generator.
            last_layer: weight of the generator at which the gradients are balanced.

        Returns:
            0-dim, weighted. It leaves no gradient in the discriminator.
        """
        # Around the wrapper: these gradients are not the discriminator's.
        discriminator = self.unwrapped.requires_grad_(False)
        loss = hinge_generator_loss(discriminator(images).float())
        discriminator.requires_grad_(True)
        reconstruction = sum(losses[n] for n in ("pixel", "perceptual") if n in losses)
        weight = self._settings.losses.adversarial
        if isinstance(reconstruction, Tensor):
            weight = weight * adaptive_weight(reconstruction, loss, last_layer)
        return weight * loss

    def accumulate(self, real: Tensor, fake: Tensor) -> Tensor:
        """Add the discriminator's gradients of one batch; return its loss, 0-dim.

        Args:
            real: (B, 3, h, w) in [0, 1].
            fake: (B, 3, h, w) of the generator, detached.
        """
        # One pass through the wrapper, which counts them.
        logits = self.module(torch.cat([real, fake])).float()
        loss = hinge_discriminator_loss(*logits.chunk(2))
        self._engine.backward(loss)
        return loss

    def update(self, step: int) -> None:
        """Take an optimizer step.

        Args:
            step: number of steps that the run has taken before.
        """
        own, start = self._settings.discriminator, self._settings.losses.adversarial_start
        rates = [own.lr] * len(self.optimizer.param_groups)
        self._engine.update(self.module, self.optimizer, own, rates, step, start)
