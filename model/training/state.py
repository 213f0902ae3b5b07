"""Full training state of a run: saved to and restored from a checkpoint."""

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

# Settings that do not influence the weights.
_MAY_CHANGE = ("every", "workers", "prefetch", "keep", "parallel")


@dataclass(frozen=True)
class TrainingState:
    """State that the next step depends on, besides the settings and the step number.

    Attributes:
        accelerator: accelerator of the run.
        modules: modules by name, without the wrapper of distributed training.
        optimizers: optimizers by name.
        ema: averaged weights.
        dataset: data set with the counts of broken samples of this process.
    """

    accelerator: Accelerator
    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    ema: EMA
    dataset: Guarded

    def save(self, out: Path, step: int, settings: Settings) -> None:
        """Write a checkpoint; all processes call it together.

        Args:
            out: folder of the checkpoints.
            step: number of completed steps.
            settings: settings of the run.
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
        sharded = {n: rows_of(t) for n, t in tensors.items() if isinstance(t, DTensor)}
        if sharded:
            self._save_shards(out, step, tensors, state, sharded)
        else:
            # Weights and optimizer states are equal in all processes.
            main, keep = self.accelerator.is_main_process, settings.keep
            run_on_all_ranks(lambda: main and save_checkpoint(out, step, tensors, state, keep))

    def _save_shards(self, out: Path, step: int, tensors: dict, state: dict, sharded: dict) -> None:
        """Write the rows of this process; the first process also writes the unsharded tensors."""
        rows = {
            n: (start, tensors[n].shape[0]) for n, (start, stop) in sharded.items() if stop > start
        }
        if not self.accelerator.is_main_process:
            tensors = {name: tensors[name] for name in rows}
        own = {n: local_shard(t) for n, t in tensors.items() if n in rows or n not in sharded}
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        shards = Shards(process, processes, rows, gather_objects)
        save_checkpoint(out, step, own, state, keep=state["settings"]["keep"], shards=shards)

    def restore(self, checkpoint: Path, settings: Settings) -> int:
        """Restore the state from a checkpoint of `save`.

        If there are more processes than before, the new ones keep their seeded random state.

        Args:
            checkpoint: folder of the checkpoint.
            settings: settings of the resumed run.

        Returns:
            Number of completed steps.

        Raises:
            ValueError: the checkpoint is incomplete, is not a training state, or has other
                settings. `every`, `workers`, `prefetch`, `keep`, `parallel` and the number of
                processes may differ.
        """
        stored, state = open_checkpoint(checkpoint)
        old = state.get("settings")
        if not isinstance(old, dict) or "structure" not in state:
            expected = "a state with settings and structure"
            raise ValueError(f"{checkpoint}: expected {expected}, got keys {sorted(state)}")
        changed = changed_settings(_with_defaults(old, settings), settings.to_dict())
        if changed:
            got = f"other values of {', '.join(changed)}"
            raise ValueError(f"settings: expected those of {checkpoint}, got {got}")
        with _naming(checkpoint):
            # Tensors are read lazily: a process needs memory for its own shard only.
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
def _naming(checkpoint: Path) -> Iterator[None]:
    """Name the checkpoint in errors of restoring its state.

    Modules and optimizers raise various errors for a state that does not fit them.
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
    """Read the tensors of a nested state, sharded where those of `like` are."""
    if isinstance(state, StoredTensor):
        return state.read(like)
    if isinstance(state, Mapping):
        own = like if isinstance(like, Mapping) else {}
        return {key: _read(value, own.get(key)) for key, value in state.items()}
    return state


def _read_optimizer(state: dict, optimizer: torch.optim.Optimizer) -> dict:
    """Read the state of an optimizer, its moments sharded like their parameters.

    Before its first step an optimizer has no moments to compare with.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        i: {key: _own(_read(value, parameters[i])) for key, value in own.items()}
        for i, own in state["state"].items()
    }
    return {**state, "state": moments}


def _own(value: Any) -> Any:
    """Copy a tensor, so that the memory of its mapped file can be freed."""
    return value.clone() if isinstance(value, Tensor) and not isinstance(value, DTensor) else value


def _with_defaults(old: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Add the defaults of settings that are newer than the checkpoint."""
    try:
        return from_plain(type(settings), old).to_dict()
    except (TypeError, ValueError):
        # Settings of another stage: the comparison names the differences.
        return old


def changed_settings(old: dict[str, Any], new: dict[str, Any], where: str = "") -> list[str]:
    """Return the dotted names of the settings that must not differ but do.

    Args:
        old: values of `Settings.to_dict` in the checkpoint.
        new: values of `Settings.to_dict` in this run.
        where: dotted name of the group of settings, with a trailing dot.
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
