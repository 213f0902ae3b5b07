"""Losses of steps, kept on the device until they are written."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from setokim.utils.distributed import mean_over_ranks


class NotFiniteError(RuntimeError):
    """A loss is infinite or not a number: the run has diverged.

    Attributes:
        before: losses of the steps before, which are finite.
    """

    def __init__(self, message: str, before: list[dict[str, float]]):
        super().__init__(message)
        self.before = before


@dataclass
class StepLosses:
    """Losses of one step, as means over its batches.

    Attributes:
        minimised: 0-dim losses by name, weighted; the step's loss is their sum.
        others: 0-dim losses by name that other modules minimise, such as a discriminator's.
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
    """Losses of the steps since the last call of `take`, on the device.

    A number read from the device makes the process wait for it, and a mean over the processes is
    an exchange between them: both happen once for many steps.
    """

    def __init__(self):
        self._steps: list[tuple[int, StepLosses, Tensor]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, losses: StepLosses, gradient_norm: Tensor) -> None:
        """Keep the losses of a step.

        Args:
            step: number of the step, from 1 on.
            losses: losses of this process.
            gradient_norm: 0-dim norm of the gradient, the same in all processes.
        """
        self._steps.append((step, losses, gradient_norm))

    def take(self) -> list[dict[str, float]]:
        """Return the losses of each step as means over the processes, which all call it.

        Returns:
            `step`, each loss by name, their sum `loss` without the others', and `gradient_norm`.

        Raises:
            NotFiniteError: a number is not finite.
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
