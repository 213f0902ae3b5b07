"""The discriminator of stage 1, with its losses and its optimizer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from setokim.training.discriminator import PatchDiscriminator
from setokim.training.losses import adaptive_weight, hinge_discriminator_loss, hinge_generator_loss
from setokim.training.schedule import parameter_groups
from setokim.training.settings import Settings, Stage1Settings


class Adversary:
    """Tells drawn pictures from true ones, and says how well the drawn ones pass.

    Args:
        accelerator: of the run.
        settings: of the run; `losses.adversarial` is not 0.
        size: height and width of the pictures.

    Attributes:
        module: the discriminator, in what distributed training puts around it.
        optimizer: of the discriminator.

    Raises:
        ValueError: the pictures are too small.
    """

    def __init__(self, accelerator: Accelerator, settings: Stage1Settings, size: tuple[int, int]):
        self._accelerator, self._settings = accelerator, settings
        discriminator = PatchDiscriminator(width=settings.discriminator_width)
        if min(size) < discriminator.min_size:
            expected = f"at least {discriminator.min_size} pixels for the discriminator"
            raise ValueError(f"model: expected sides of {expected}, got {size}")
        own = settings.discriminator
        groups = parameter_groups(discriminator, own.lr, own.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=own.betas)
        self.module, self.optimizer = accelerator.prepare(discriminator, optimizer)

    @property
    def unwrapped(self) -> PatchDiscriminator:
        """The discriminator alone."""
        return self._accelerator.unwrap_model(self.module)

    def generator_loss(
        self, found: Mapping[str, Tensor], picture: Tensor, last_layer: Tensor
    ) -> Tensor:
        """What the generator loses to the discriminator, balanced with the reconstruction.

        Args:
            found: losses of stage 1.
            picture: (B, 3, h, w) that the generator drew.
            last_layer: weights of the generator, at which the two are balanced.

        Returns:
            0-dim, weighted. It leaves no gradient in the discriminator.
        """
        # Around the wrapper: these gradients are not the discriminator's.
        judge = self.unwrapped.requires_grad_(False)
        loss = hinge_generator_loss(judge(picture).float())
        judge.requires_grad_(True)
        reconstruction = sum(found[n] for n in ("pixel", "perceptual") if n in found)
        weight = self._settings.losses.adversarial
        if isinstance(reconstruction, Tensor):
            weight = weight * adaptive_weight(reconstruction, loss, last_layer)
        return weight * loss

    def learn(self, real: Tensor, fake: Tensor) -> Tensor:
        """Adds the discriminator's gradients for one batch; returns its loss, 0-dim.

        Args:
            real: (B, 3, h, w) in [0, 1].
            fake: (B, 3, h, w) that the generator drew, detached.
        """
        # One pass through the wrapper, which counts them.
        logits = self.module(torch.cat([real, fake])).float()
        loss = hinge_discriminator_loss(*logits.chunk(2))
        self._accelerator.backward(loss / self._settings.accumulation)
        return loss


def build_adversary(
    accelerator: Accelerator, settings: Settings, size: tuple[int, int] | None
) -> Adversary | None:
    """The adversary of a run, or None where its loss counts nothing or the stage has none.

    Args:
        accelerator: of the run.
        settings: of the run.
        size: height and width of the pictures that stage 1 draws.
    """
    if isinstance(settings, Stage1Settings) and settings.losses.adversarial:
        return Adversary(accelerator, settings, size)
    return None
