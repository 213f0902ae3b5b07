"""Optimizers by name: AdamW, and Muon with AdamW for what is no hidden matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from setokim.training.base_settings import OptimizerSettings


def build_optimizer(
    groups: Sequence[dict[str, Any]], settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """The optimizer that the settings name.

    Args:
        groups: of `Stage.parameter_groups`.
        settings: its other numbers.
    """
    if settings.kind == "muon":
        return MuonAdamW(groups, settings.betas)
    return torch.optim.AdamW(groups, betas=settings.betas)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the groups whose `hidden` is true, AdamW for the others, as one optimizer.

    Muon (Jordan et al., 2024) makes the singular values of each matrix's step equal. The step is
    scaled to that of AdamW (Liu et al., "Muon is scalable for LLM training", 2025), so that one
    learning rate and one weight decay fit both.

    Args:
        groups: with `params`, `lr`, `weight_decay` and `hidden`; the parameters of a hidden group
            have two dimensions.
        betas: of AdamW.

    Raises:
        ValueError: a hidden parameter has another number of dimensions.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], betas: tuple[float, float]):
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, "hidden": False})
        makers: dict[bool, Callable[[list[dict]], torch.optim.Optimizer]] = {
            True: lambda groups: torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw"),
            False: lambda groups: torch.optim.AdamW(groups, betas=betas),
        }
        self._parts = {
            hidden: maker(own) for hidden, maker in makers.items() if (own := self._groups(hidden))
        }
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of both."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self._parts.values():
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._share()

    def _groups(self, hidden: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["hidden"] == hidden]

    def _share(self) -> None:
        """Groups and state are those of the parts, which have none of their own."""
        for hidden, part in self._parts.items():
            part.param_groups, part.state = self._groups(hidden), self.state
