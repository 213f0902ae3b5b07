"""Losses of recent steps, kept on the device until they are logged."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from setokim.utils.distributed import mean_over_ranks


class NotFiniteError(RuntimeError):
    """Error for a loss that is infinite or NaN: the run has diverged.

    Attributes:
        before: finite losses of the earlier steps.
    """

    def __init__(self, message: str, before: list[dict[str, float]]):
        super().__init__(message)
        self.before = before


@dataclass
class StepLosses:
    """Losses of one step, averaged over its batches.

    Attributes:
        minimised: weighted losses by name, 0-dim; the loss of the step is their sum.
        others: losses of further modules by name, 0-dim, such as the discriminator's.
    """

    minimised: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)

    def add(self, later: StepLosses, batches: int) -> None:
        """Add the losses of one batch.

        Args:
            later: losses of the batch.
            batches: number of batches of the step.
        """
        for own, new in ((self.minimised, later.minimised), (self.others, later.others)):
            for name, value in new.items():
                own[name] = own.get(name, 0) + value.detach() / batches


class PendingLosses:
    """Queue of the losses since the last call of `take`, on the device.

    Reading a number waits for the device, and a mean over the processes is a collective. Both
    happen once for many steps.
    """

    def __init__(self):
        self._steps: list[tuple[int, StepLosses, Tensor]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, losses: StepLosses, gradient_norm: Tensor) -> None:
        """Keep the losses of a step.

        Args:
            step: number of the step, starting at 1.
            losses: losses of this process.
            gradient_norm: norm of the gradient, 0-dim, equal in all processes.
        """
        self._steps.append((step, losses, gradient_norm))

    def take(self) -> list[dict[str, float]]:
        """Return the losses of each step, averaged over the processes, and empty the queue.

        All processes call it together.

        Returns:
            For each step `step`, each loss by name, `loss` (the sum of the minimised ones) and
            `gradient_norm`.

        Raises:
            NotFiniteError: a loss or a norm is not finite.
        """
        taken, self._steps = self._steps, []
        values = [
            value.float()
            for _, losses, _ in taken
            for value in (*losses.minimised.values(), *losses.others.values())
        ]
        if not taken:
            return []
        means = iter(mean_over_ranks(torch.stack(values)).tolist())
        norms = torch.stack([norm.float() for _, _, norm in taken]).tolist()
        found: list[dict[str, float]] = []
        for (step, losses, _), norm in zip(taken, norms, strict=True):
            minimised = {name: next(means) for name in losses.minimised}
            others = {name: next(means) for name in losses.others}
            line = {**minimised, **others, "loss": sum(minimised.values()), "gradient_norm": norm}
            if not all(map(math.isfinite, line.values())):
                raise NotFiniteError(f"step {step}: a loss is not finite: {line}", found)
            found.append({"step": step, **line})
        return found
