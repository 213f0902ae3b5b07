"""The interface between the trainer and a stage of the training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from setokim.data import Dataset
from setokim.training.base_settings import OptimizerSettings
from setokim.training.engine import Engine
from setokim.training.schedule import parameter_groups
from setokim.training.step_losses import StepLosses

Collate = Callable[[Sequence[Any]], dict[str, Any]]


@dataclass(frozen=True)
class StageOutput:
    """Output of a stage's forward pass.

    Attributes:
        losses: 0-dim losses by name, weighted, whose sum is minimised.
        images: (B, 3, h, w) reconstructed images, for a stage that compares them further.
    """

    losses: dict[str, Tensor]
    images: Tensor | None = None


@dataclass(frozen=True)
class TrainedModule:
    """A module that a stage trains with an optimizer of its own, such as a discriminator.

    Attributes:
        module: the module, without what distributed training puts around it.
        optimizer: optimizer of the module.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer


class Stage(nn.Module, ABC):
    """A model with its losses, its metrics and its files.

    The constructor takes the settings, and draws weights from torch's random state alone.
    """

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> StageOutput:
        """Compute the losses of a batch.

        Args:
            batch: output of the collator, its tensors on the stage's device.
        """

    @abstractmethod
    def collator(self) -> Collate:
        """A function that makes samples a dict of tensors and plain values.

        It runs in the processes that load data, so it is picklable and draws no random numbers.
        """

    @abstractmethod
    def evaluate(
        self, collate: Collate, held_out: Dataset, batch_size: int
    ) -> dict[str, float | None]:
        """Figures over all of a data set; None for what is no finite number.

        Args:
            collate: of `collator`.
            held_out: samples it was not trained on.
            batch_size: samples at once.
        """

    @abstractmethod
    def draw(self, collate: Collate, held_out: Dataset, path: Path) -> None:
        """Writes a PNG of what the model makes of the first samples; its folder is made."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Writes the model to use, as safetensors and JSON."""

    def prepare(self, dataset: Dataset) -> None:
        """Fits what the data determines, before a fresh run makes its optimizer.

        All processes call it with the same samples and must come to the same: no random numbers.

        Args:
            dataset: for training.
        """

    def start(self, engine: Engine) -> dict[str, TrainedModule]:
        """Make the modules that the stage trains beside itself; the stage has its optimizer then.

        Args:
            engine: engine of the run.

        Returns:
            Modules by name; their state is part of a checkpoint.
        """
        return {}

    def accumulate(
        self, engine: Engine, module: nn.Module, batch: dict[str, Any], step: int, last: bool
    ) -> StepLosses:
        """Add the gradients of one batch; a stage with further modules adds theirs too.

        Args:
            engine: engine of the run.
            module: the stage, in what distributed training puts around it.
            batch: output of the collator, its tensors on the stage's device.
            step: number of steps taken before.
            last: True for the last batch of the step.
        """
        with engine.synchronised(module, last):
            losses = engine.forward(module, batch).losses
            engine.backward(sum(losses.values()))
        return StepLosses(losses)

    def update(self, engine: Engine, step: int) -> None:
        """Take an optimizer step with the further modules, after that of the stage itself.

        Args:
            engine: engine of the run.
            step: number of steps taken before.
        """

    def visual_parts(self) -> Sequence[nn.Module]:
        """Modules that learn at `visual_lr`."""
        return ()

    def hidden_parts(self) -> Sequence[nn.Module]:
        """Modules whose linear layers Muon moves, where it is chosen."""
        return [self]

    def parameter_groups(self, settings: OptimizerSettings) -> list[dict[str, Any]]:
        """Parameters that learn, for an optimizer.

        Returns:
            Groups with `weight_decay`, and `lr`, the rate at the end of the warm-up; with Muon
            `hidden` is true in those of the matrices that it moves.

        Raises:
            ValueError: nothing is to be trained.
        """
        groups = parameter_groups(self, settings.lr, settings.weight_decay)
        if settings.visual_lr is not None:
            visual = [p for part in self.visual_parts() for p in part.parameters()]
            groups = _split(groups, visual, {"lr": settings.visual_lr})
        if settings.kind == "muon":
            layers = [layer for part in self.hidden_parts() for layer in part.modules()]
            hidden = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
            groups = _split(groups, hidden, {"hidden": True})
        return groups


def _split(
    groups: list[dict[str, Any]], chosen: Sequence[nn.Parameter], fields: dict[str, Any]
) -> list[dict[str, Any]]:
    """Takes some parameters out of their groups, into ones with other fields."""
    known = {id(parameter) for parameter in chosen}
    split = []
    for group in groups:
        for is_chosen, own in ((False, {}), (True, fields)):
            params = [p for p in group["params"] if (id(p) in known) == is_chosen]
            split.append({**group, "params": params, **own})
    return [group for group in split if group["params"]]


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Moves the tensors of a batch; plain values stay what they are."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
