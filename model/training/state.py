"""What a run goes on from: the whole state of training in a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from setokim.data import Guarded
from setokim.training.base_settings import Settings
from setokim.training.checkpoint import open_checkpoint, rng_state, save_checkpoint, set_rng_state
from setokim.training.nested import flatten_state, unflatten_state
from setokim.training.schedule import EMA
from setokim.training.shards import Shards, StoredTensor, rows_of
from setokim.utils.distributed import gather_objects, local_shard, run_on_all_ranks
from setokim.utils.parsing import from_plain

# What the weights do not depend on.
_MAY_CHANGE = ("every", "workers", "keep", "parallel")


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
        processes = gather_objects({"rng": rng_state(), "data": self.dataset.state_dict()})
        tensors, structure = flatten_state(
            {
                "modules": {n: m.state_dict() for n, m in self.modules.items()},
                "optimizers": {n: o.state_dict() for n, o in self.optimizers.items()},
                "ema": self.ema.state_dict(),
                "processes": processes,
            }
        )
        state = {"structure": structure, "settings": settings.to_dict()}
        spread = {n: rows_of(t) for n, t in tensors.items() if isinstance(t, DTensor)}
        if spread:
            self._save_shards(out, step, tensors, state, spread)
        else:
            # Weights and optimizers are the same in all processes.
            main, keep = self.accelerator.is_main_process, settings.keep
            run_on_all_ranks(lambda: main and save_checkpoint(out, step, tensors, state, keep))

    def _save_shards(self, out: Path, step: int, tensors: dict, state: dict, spread: dict) -> None:
        """Each process writes its rows, the first one also what all of them have."""
        rows = {
            n: (start, tensors[n].shape[0]) for n, (start, stop) in spread.items() if stop > start
        }
        if not self.accelerator.is_main_process:
            tensors = {name: tensors[name] for name in rows}
        own = {n: local_shard(t) for n, t in tensors.items() if n in rows or n not in spread}
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        shards = Shards(process, processes, rows, gather_objects)
        save_checkpoint(out, step, own, state, keep=state["settings"]["keep"], shards=shards)

    def restore(self, checkpoint: Path, settings: Settings) -> int:
        """Reads what `save` wrote.

        With more processes than there were, the new ones keep the state they were seeded with.

        Args:
            checkpoint: its folder.
            settings: of the run that goes on.

        Returns:
            The number of steps made.

        Raises:
            ValueError: the checkpoint is not complete, holds something else than such a state, or
                was made with other settings; how often something happens, `workers`, `keep`,
                `parallel` and the number of processes may differ.
        """
        stored, state = open_checkpoint(checkpoint)
        old = state.get("settings")
        if not isinstance(old, dict) or "structure" not in state:
            expected = "a state with settings and structure"
            raise ValueError(f"{checkpoint}: expected {expected}, got keys {sorted(state)}")
        changed = changed_settings(_with_defaults(old, settings), settings.to_dict())
        if changed:
            raise ValueError(
                f"settings: expected those of {checkpoint}, got others of {', '.join(changed)}"
            )
        with _fitting(checkpoint):
            # Read in the end, so that a process needs no more memory than for its share.
            tensors = {name: StoredTensor(stored, name) for name in stored}
            self._restore(unflatten_state(tensors, state["structure"]))
        return int(checkpoint.name.rpartition("-")[2])

    def _restore(self, found: dict[str, Any]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(_read(found["modules"][name], module.state_dict()))
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(_read_optimizer(found["optimizers"][name], optimizer))
        self.ema.load_state_dict(_read(found["ema"], self.ema.state_dict()))
        if self.accelerator.process_index < len(found["processes"]):
            own = _read(found["processes"][self.accelerator.process_index])
            self.dataset.load_state_dict(own["data"])
            set_rng_state(own["rng"])


@contextlib.contextmanager
def _fitting(checkpoint: Path) -> Iterator[None]:
    """Says which checkpoint it is that something in it does not fit the run.

    Each module and optimizer has errors of its own for a state that it does not know.
    """
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{checkpoint}: expected the state of a run with these settings and this version, "
            f"got {type(error).__name__}: {reason}"
        ) from error


def _read(state: Any, like: Any = None) -> Any:
    """Reads the tensors of a nested state, those spread that stand where `like` has such."""
    if isinstance(state, StoredTensor):
        return state.read(like)
    if isinstance(state, Mapping):
        own = like if isinstance(like, Mapping) else {}
        return {key: _read(value, own.get(key)) for key, value in state.items()}
    return state


def _read_optimizer(state: dict, optimizer: torch.optim.Optimizer) -> dict:
    """Moments are spread like their parameters; before the first step there are none to ask."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        i: {key: _own(_read(value, parameters[i])) for key, value in own.items()}
        for i, own in state["state"].items()
    }
    return {**state, "state": moments}


def _own(value: Any) -> Any:
    """Takes a tensor out of the file, whose space could not be freed while the run has it."""
    return value.clone() if isinstance(value, Tensor) and not isinstance(value, DTensor) else value


def _with_defaults(old: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Add the settings that a version after the checkpoint's brought, at their defaults."""
    try:
        return from_plain(type(settings), old).to_dict()
    except (TypeError, ValueError):
        # Of another stage: what differs is named by the comparison.
        return old


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
