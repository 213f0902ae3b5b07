"""Forward passes, backward passes and optimizer steps in one or many processes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from setokim.training.base_settings import OptimizerSettings, Settings
from setokim.training.schedule import cosine_with_warmup
from setokim.training.sharding import Sharded


class Engine:
    """Forward and backward passes and optimizer steps of the modules of a run.

    Args:
        accelerator: accelerator of the run.
        settings: settings of the run.
        sharded: module whose weights are sharded over the processes; None if each process has all.
    """

    def __init__(self, accelerator: Accelerator, settings: Settings, sharded: Sharded | None):
        self.accelerator, self.settings, self._sharded = accelerator, settings, sharded

    def forward(self, module: nn.Module, batch: dict[str, Any]) -> Any:
        """Run a prepared module on a batch in the precision of the run."""
        if self._sharded is None:
            return module(batch)
        # `Accelerator.prepare` would put autocast into the module itself.
        with self.accelerator.autocast():
            return module(batch)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one batch of a step, from its 0-dim loss."""
        self.accelerator.backward(loss / self.settings.accumulation)

    def synchronised(self, module: nn.Module, last: bool):
        """Return a context for a backward pass that exchanges gradients only for the last batch.

        Args:
            module: prepared module whose gradients are computed inside.
            last: flag of the last batch of the step.
        """
        # Unsharded gradients are exchanged once a step, sharded ones after each batch.
        wait = self._sharded is None and not last
        return self.accelerator.no_sync(module) if wait else contextlib.nullcontext()

    def update(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: OptimizerSettings,
        rates: Sequence[float],
        step: int,
        start: int = 0,
    ) -> Tensor:
        """Take one optimizer step and clear the gradients.

        Args:
            module: prepared module that the optimizer trains.
            optimizer: optimizer of the module.
            settings: settings of the schedule and the maximum gradient norm.
            rates: learning rate of each parameter group at the end of the warm-up.
            step: number of completed steps.
            start: first step of the schedule.

        Returns:
            0-dim norm of the gradient before clipping.
        """
        norm = self.accelerator.clip_grad_norm_(module.parameters(), settings.clip)
        total = max(self.settings.steps - start, settings.warmup)
        factor = cosine_with_warmup(step - start, settings.warmup, total, settings.least)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.step()
        optimizer.zero_grad()
        return norm
