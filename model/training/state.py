"""What a run goes on from: the whole state of training in a checkpoint, and logs cut to fit it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from torch import nn

from setokim.data import Guarded
from setokim.training.checkpoint import (
    flatten_state,
    load_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
    unflatten_state,
)
from setokim.training.schedule import EMA
from setokim.training.settings import Settings

# What the weights do not depend on.
_MAY_CHANGE = ("every", "workers", "keep")


@dataclass(frozen=True)
class TrainingState:
    """All that the next step depends on, apart from the settings and its number.

    Attributes:
        accelerator: of the run.
        modules: by name, not wrapped.
        optimizers: by name.
        ema: the averaged weights.
        dataset: the record of broken samples; each process has its own.
    """

    accelerator: Accelerator
    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    ema: EMA
    dataset: Guarded

    def save(self, out: Path, step: int, settings: Settings) -> None:
        """Writes a checkpoint; all processes call it together.

        Args:
            out: folder of the checkpoints.
            step: number of steps made.
            settings: of the run.
        """
        # Weights and optimizers are the same in all processes.
        own = {"rng": rng_state(), "data": self.dataset.state_dict()}
        processes = [own]
        if self.accelerator.num_processes > 1:
            processes = [None] * self.accelerator.num_processes
            torch.distributed.all_gather_object(processes, own)
        if self.accelerator.is_main_process:
            tensors, structure = flatten_state(
                {
                    "modules": {n: m.state_dict() for n, m in self.modules.items()},
                    "optimizers": {n: o.state_dict() for n, o in self.optimizers.items()},
                    "ema": self.ema.state_dict(),
                    "processes": processes,
                }
            )
            state = {"structure": structure, "settings": settings.to_dict()}
            save_checkpoint(out, step, tensors, state, keep=settings.keep)
        self.accelerator.wait_for_everyone()

    def restore(self, checkpoint: Path, settings: Settings) -> int:
        """Reads what `save` wrote.

        With more processes than there were, the new ones keep the state they were seeded with.

        Args:
            checkpoint: its folder.
            settings: of the run that goes on.

        Returns:
            The number of steps made.

        Raises:
            ValueError: the checkpoint is not complete, or was made with other settings; how often
                something happens, `workers` and `keep` may differ.
        """
        tensors, state = load_checkpoint(checkpoint)
        changed = changed_settings(state["settings"], settings.to_dict())
        if changed:
            raise ValueError(
                f"settings: expected those of {checkpoint}, got others of {', '.join(changed)}"
            )
        found = unflatten_state(tensors, state["structure"])
        for name, module in self.modules.items():
            module.load_state_dict(found["modules"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(found["optimizers"][name])
        self.ema.load_state_dict(found["ema"])
        if self.accelerator.process_index < len(found["processes"]):
            own = found["processes"][self.accelerator.process_index]
            self.dataset.load_state_dict(own["data"])
            set_rng_state(own["rng"])
        return int(checkpoint.name.rpartition("-")[2])


def changed_settings(old: dict[str, Any], new: dict[str, Any], where: str = "") -> list[str]:
    """Dotted names of the settings that differ, leaving out those that may.

    Args:
        old: of `Settings.to_dict`.
        new: likewise.
        where: name of the group that both are, with a dot at its end.
    """
    changed = []
    for key in sorted(old.keys() | new.keys()):
        name = f"{where}{key}"
        a, b = old.get(key), new.get(key)
        if name in _MAY_CHANGE:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            changed += changed_settings(a, b, f"{name}.")
        elif a != b:
            changed.append(name)
    return changed


def open_log(path: Path, step: int) -> TextIO:
    """Opens a log to write on after its last line of a step up to `step`.

    What a killed run wrote after its last checkpoint is cut off: it will be written again.

    Args:
        path: JSON with a "step" a line, in rising order; made if need be. A process that was
            killed may have left half a line.
        step: the last one that stays.
    """
    path.touch()
    with path.open("r+b") as file:
        end = 0
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            end += len(line)
        file.truncate(end)
    return path.open("a", encoding="utf-8")
