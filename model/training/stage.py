"""Interface between the trainer and a training stage."""

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
        losses: weighted losses by name, 0-dim; their sum is minimised.
        images: reconstructed images (B, 3, h, w), for the further losses of a stage; None without.
    """

    losses: dict[str, Tensor]
    images: Tensor | None = None


@dataclass(frozen=True)
class TrainedModule:
    """A further module of a stage with its own optimizer, such as a discriminator.

    Attributes:
        module: module without the wrapper of distributed training.
        optimizer: optimizer of the module.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer


class Stage(nn.Module, ABC):
    """Base class of a training stage: a model with its losses, metrics and output files.

    The constructor takes the settings. It samples weights from torch's global generator only.
    """

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> StageOutput:
        """Compute the losses of a batch.

        Args:
            batch: output of the collator, its tensors on the stage's device.
        """

    @abstractmethod
    def collator(self) -> Collate:
        """Return the function that collates samples into a dict of tensors and plain values.

        It runs in the data loading processes. It must be picklable and use no random numbers.
        """

    @abstractmethod
    def evaluate(
        self, collate: Collate, held_out: Dataset, batch_size: int
    ) -> dict[str, float | None]:
        """Compute the metrics of a whole data set.

        Args:
            collate: function that `collator` returned.
            held_out: samples that the stage is not trained on.
            batch_size: number of samples in a batch.

        Returns:
            Metrics by name; None for one that is not finite.
        """

    @abstractmethod
    def write_samples(self, collate: Collate, held_out: Dataset, path: Path) -> None:
        """Write an image sheet of the model's output for the first samples.

        Args:
            collate: function that `collator` returned.
            held_out: samples that the stage is not trained on.
            path: path of the PNG; its folder is created.
        """

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the model for inference as safetensors and JSON."""

    def prepare(self, dataset: Dataset) -> None:
        """Fit statistics of the data, before a new run creates its optimizer.

        All processes call it with the same samples. It uses no random numbers, because the results
        must be equal.

        Args:
            dataset: training data.
        """

    def start(self, engine: Engine) -> dict[str, TrainedModule]:
        """Create the further modules to train, after the optimizer of the stage itself.

        Args:
            engine: engine of the run.

        Returns:
            Modules by name; their state is part of a checkpoint.
        """
        return {}

    def accumulate(
        self, engine: Engine, module: nn.Module, batch: dict[str, Any], step: int, last: bool
    ) -> StepLosses:
        """Add the gradients of one batch, those of the further modules included.

        Args:
            engine: engine of the run.
            module: stage in the wrapper of distributed training.
            batch: output of the collator, its tensors on the stage's device.
            step: number of completed steps.
            last: flag of the last batch of the step.

        Returns:
            Losses of the batch.
        """
        with engine.synchronised(module, last):
            losses = engine.forward(module, batch).losses
            engine.backward(sum(losses.values()))
        return StepLosses(losses)

    def update(self, engine: Engine, step: int) -> None:
        """Take an optimizer step of the further modules, after that of the stage itself.

        Args:
            engine: engine of the run.
            step: number of completed steps.
        """

    def visual_parts(self) -> Sequence[nn.Module]:
        """Return the modules that are trained at `visual_lr`."""
        return ()

    def hidden_parts(self) -> Sequence[nn.Module]:
        """Return the modules whose linear layers Muon trains, if it is chosen."""
        return [self]

    def parameter_groups(self, settings: OptimizerSettings) -> list[dict[str, Any]]:
        """Return the trainable parameters in groups for an optimizer.

        Args:
            settings: settings of the optimizer.

        Returns:
            Groups with `weight_decay` and `lr`, the rate at the end of the warm-up. With Muon,
            `hidden` is True in the groups that it trains.

        Raises:
            ValueError: no parameter is trainable.
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
    """Move the chosen parameters to groups of their own with changed fields."""
    known = {id(parameter) for parameter in chosen}
    split = []
    for group in groups:
        for is_chosen, own in ((False, {}), (True, fields)):
            params = [p for p in group["params"] if (id(p) in known) == is_chosen]
            split.append({**group, "params": params, **own})
    return [group for group in split if group["params"]]


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move the tensors of a batch to a device, and values with `to`; plain ones stay unchanged.

    The call does not wait for copies from pinned memory; what uses the results on the device does.
    """
    return {
        name: value.to(device, non_blocking=True) if hasattr(value, "to") else value
        for name, value in batch.items()
    }
