"""Adversarial training of stage 1: discriminator, losses and optimizer."""

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
    """Patch discriminator with its optimizer and both adversarial losses.

    Args:
        engine: engine of the run.
        settings: settings of the run; `losses.adversarial` is not 0.
        size: height and width of the images in pixels.

    Attributes:
        module: discriminator in the wrapper of distributed training.
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
        """Discriminator without the wrapper of distributed training."""
        return self._engine.accelerator.unwrap_model(self.module)

    def generator_loss(
        self, losses: Mapping[str, Tensor], images: Tensor, last_layer: Tensor
    ) -> Tensor:
        """Return the generator's adversarial loss, balanced with the reconstruction losses.

        Args:
            losses: losses of stage 1 by name.
            images: generated images (B, 3, h, w).
            last_layer: weight of the generator at which the gradients are balanced.

        Returns:
            0-dim weighted loss. It adds no gradient to the discriminator.
        """
        # Without the wrapper, which expects gradients for the discriminator.
        discriminator = self.unwrapped.requires_grad_(False)
        loss = hinge_generator_loss(discriminator(images).float())
        discriminator.requires_grad_(True)
        reconstruction = sum(losses[n] for n in ("pixel", "perceptual") if n in losses)
        weight = self._settings.losses.adversarial
        if isinstance(reconstruction, Tensor):
            weight = weight * adaptive_weight(reconstruction, loss, last_layer)
        return weight * loss

    def accumulate(self, real: Tensor, fake: Tensor) -> Tensor:
        """Add the discriminator's gradients of one batch.

        Args:
            real: target images (B, 3, h, w) in [0, 1].
            fake: generated images (B, 3, h, w), detached.

        Returns:
            0-dim loss.
        """
        # One pass for both: the wrapper expects a forward pass for each backward pass.
        logits = self.module(torch.cat([real, fake])).float()
        loss = hinge_discriminator_loss(*logits.chunk(2))
        self._engine.backward(loss)
        return loss

    def update(self, step: int) -> None:
        """Take an optimizer step.

        Args:
            step: number of completed steps of the run.
        """
        own, start = self._settings.discriminator, self._settings.losses.adversarial_start
        rates = [own.lr] * len(self.optimizer.param_groups)
        self._engine.update(self.module, self.optimizer, own, rates, step, start)
