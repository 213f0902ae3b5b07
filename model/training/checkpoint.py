"""Training state on disk: safetensors and JSON, never pickle, and never half a checkpoint.

A checkpoint is a folder `checkpoint-00001234` with `state.json` and `tensors.safetensors`, or,
where each of n processes writes its rows, `tensors-00000-of-0000n.safetensors` and so on; the
metadata of a file say which rows it has. A checkpoint is written under another name and renamed
once everything is on the disk, so a process that is killed leaves at worst a hidden folder, which
the next save removes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from setokim.training.shards import Shards, StoredTensors

_STATE = "state.json"
_NAME = re.compile(r"checkpoint-(\d{8,})")
_UNFINISHED = ".unfinished-"


def save_checkpoint(
    folder: str | Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int = 3,
    shards: Shards | None = None,
) -> Path:
    """Writes a checkpoint, then removes all but the newest.

    One process at a time may save into a folder, or with `shards` all of a run together. A
    checkpoint of the same step is replaced; the others are there throughout.

    Args:
        folder: where the checkpoints are; made if need be.
        step: of the training, not negative.
        tensors: of any shapes, dtypes, strides and devices; they may share memory, and are
            copied to the CPU.
        state: dicts with strings for keys, lists, strings, numbers, booleans and None.
        keep: number of checkpoints to keep, those of the highest steps and in any case this one.
        shards: where every process has a part; process 0 writes the state, and its folder is the
            one that all see. `tensors` are then those that this process has to write.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: `step` is negative or `keep` less than 1.
        TypeError: `state` holds something that JSON would not give back as it was.
    """
    if step < 0:
        raise ValueError(f"step: expected at least 0, got {step}")
    if keep < 1:
        raise ValueError(f"keep: expected at least 1, got {keep}")
    _check_json("state", dict(state))
    folder = Path(folder)
    shards = shards or Shards()
    unfinished = folder / f"{_UNFINISHED}{step}"
    final = folder / f"checkpoint-{step:08d}"
    if shards.process == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover)
        unfinished.mkdir()
    shards.wait()
    # A copy of its own for each: safetensors refuses tensors that share memory.
    copies = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    file = unfinished / shards.file
    save_file(copies, file, shards.metadata)
    _sync(file)
    shards.wait()
    if shards.process == 0:
        (unfinished / _STATE).write_text(json.dumps(dict(state), indent=1), encoding="utf-8")
        for path in (unfinished / _STATE, unfinished):
            _sync(path)
        _finish(unfinished, final, keep)
    shards.wait()
    return final


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The complete checkpoint of the highest step, or None; anything else is ignored."""
    complete = (path for path in reversed(_checkpoints(Path(folder))) if _is_complete(path))
    return next(complete, None)


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_checkpoint` wrote.

    Args:
        path: the checkpoint's folder.

    Returns:
        The tensors, on the CPU, and the state.

    Raises:
        ValueError: it is no complete checkpoint.
    """
    tensors, state = open_checkpoint(path)
    return {name: tensors[name] for name in tensors}, state


def open_checkpoint(path: str | Path) -> tuple[StoredTensors, dict[str, Any]]:
    """Like `load_checkpoint`, with tensors that are read when they are asked for.

    Raises:
        ValueError: it is no complete checkpoint.
    """
    path = Path(path)
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        return StoredTensors(path), state
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"path: expected a complete checkpoint, got {path}: {error}") from error


def rng_state() -> dict[str, Tensor]:
    """State of torch's default generators: "cpu", and "cuda" of the current device if there."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_state(states: Mapping[str, Tensor]) -> None:
    """Restores what `rng_state` returned.

    Raises:
        ValueError: the states are of other devices than this machine has, so that the run cannot
            go on as it would have.
    """
    expected = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if sorted(states) != expected:
        raise ValueError(f"states: expected those of {expected}, got {sorted(states)}")
    torch.set_rng_state(states["cpu"].cpu())
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu())


def _check_json(name: str, value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{name}: expected keys that are strings, got {key!r}")
            _check_json(f"{name}[{key!r}]", item)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_json(f"{name}[{i}]", item)
    elif not (value is None or isinstance(value, (bool, int, float, str))):
        expected = "a dict, list, string, number, boolean or None"
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")


def _checkpoints(folder: Path) -> list[Path]:
    """Folders that are named like checkpoints, by step."""
    if not folder.is_dir():
        return []
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def _is_complete(path: Path) -> bool:
    try:
        # Reads the headers alone, and compares the files' lengths with them.
        open_checkpoint(path)
    except ValueError:
        return False
    return True


def _finish(unfinished: Path, final: Path, keep: int) -> None:
    """Gives a checkpoint its name, and takes away those that are too many."""
    folder = final.parent
    removed = [_hide(final)] if final.exists() else []
    unfinished.rename(final)
    _sync(folder)
    others = [path for path in _checkpoints(folder) if path != final]
    removed += [_hide(path) for path in others[: max(0, len(others) - (keep - 1))]]
    for path in removed:
        shutil.rmtree(path)


def _hide(path: Path) -> Path:
    """Takes a checkpoint's name away in one step: its files cannot be removed in one."""
    return path.rename(path.parent / f"{_UNFINISHED}{path.name}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
