"""Builds the optimizer of a run: AdamW, or Muon for hidden matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from setokim.training.base_settings import OptimizerSettings


def build_optimizer(
    groups: Sequence[dict[str, Any]], settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """Build the optimizer of the settings.

    Args:
        groups: parameter groups of `Stage.parameter_groups`.
        settings: kind and moment decay rates of the optimizer.
    """
    if settings.kind == "muon":
        return MuonAdamW(groups, settings.betas)
    return torch.optim.AdamW(groups, betas=settings.betas)


class MuonAdamW(torch.optim.Optimizer):
    """Optimizer with Muon for the groups whose `hidden` is True and AdamW for the others.

    Muon (Jordan et al., 2024) makes the singular values of each matrix's step equal. The step is
    scaled to that of AdamW (Liu et al., "Muon is scalable for LLM training", 2025), so that one
    learning rate and one weight decay fit both.

    Args:
        groups: parameter groups with `params`, `lr`, `weight_decay` and `hidden`; the parameters of
            a hidden group have two dimensions.
        betas: decay rates of AdamW's two moments.

    Raises:
        ValueError: a parameter of a hidden group does not have two dimensions.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], betas: tuple[float, float]):
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, "hidden": False})
        factories: dict[bool, Callable[[list[dict]], torch.optim.Optimizer]] = {
            True: lambda groups: torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw"),
            False: lambda groups: torch.optim.AdamW(groups, betas=betas),
        }
        self._parts = {
            hidden: build(own)
            for hidden, build in factories.items()
            if (own := self._groups(hidden))
        }
        self._share_state()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step with both optimizers; return the loss of the closure."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self._parts.values():
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        super().load_state_dict(state_dict)
        self._share_state()

    def _groups(self, hidden: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["hidden"] == hidden]

    def _share_state(self) -> None:
        """Make both optimizers use the groups and the state of this one."""
        for hidden, part in self._parts.items():
            part.param_groups, part.state = self._groups(hidden), self.state
