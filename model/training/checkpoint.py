"""Training state on disk: safetensors and JSON, never pickle, and never half a checkpoint.

A checkpoint is a folder `checkpoint-00001234` with `tensors.safetensors` and `state.json`. It is
written under another name and renamed once everything is on the disk, so a process that is killed
leaves at worst a hidden folder, which the next save removes.
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

_TENSORS, _STATE = "tensors.safetensors", "state.json"
_NAME = re.compile(r"checkpoint-(\d{8,})")
_UNFINISHED = ".unfinished-"


def save_checkpoint(
    folder: str | Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int = 3,
) -> Path:
    """Writes a checkpoint, then removes all but the newest.

    One process at a time may save into a folder. A checkpoint of the same step is replaced; the
    others are there throughout.

    Args:
        folder: where the checkpoints are; made if need be.
        step: of the training, not negative.
        tensors: of any shapes, dtypes, strides and devices; they may share memory, and are
            copied to the CPU.
        state: dicts with strings for keys, lists, strings, numbers, booleans and None.
        keep: number of checkpoints to keep, those of the highest steps and in any case this one.

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
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(leftover)

    unfinished = folder / f"{_UNFINISHED}{step}"
    unfinished.mkdir()
    # A copy of its own for each: safetensors refuses tensors that share memory.
    copies = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    save_file(copies, unfinished / _TENSORS)
    (unfinished / _STATE).write_text(json.dumps(dict(state), indent=1), encoding="utf-8")
    for path in (unfinished / _TENSORS, unfinished / _STATE, unfinished):
        _sync(path)
    final = folder / f"checkpoint-{step:08d}"
    removed = [_hide(final)] if final.exists() else []
    unfinished.rename(final)
    _sync(folder)

    others = [path for path in _checkpoints(folder) if path != final]
    removed += [_hide(path) for path in others[: max(0, len(others) - (keep - 1))]]
    for path in removed:
        shutil.rmtree(path)
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
    path = Path(path)
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        return load_file(path / _TENSORS), state
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"path: expected a complete checkpoint, got {path}: {error}") from error


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Takes a nested state, such as an optimizer's, apart into tensors and what JSON can hold.

    Args:
        state: dicts, lists and tuples of tensors, numbers, strings, booleans and None; the keys of
            dicts are of these kinds too, tensors excepted.

    Returns:
        Tensors by the dotted path at which each was found first, and the structure around them.
        A tensor found twice is there once.

    Raises:
        TypeError: the state holds anything else.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[tuple, str] = {}

    def take(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Tensor):
            identity = _identity(value)
            if identity not in names:
                name = ".".join(path)
                # Keys may have dots in them.
                while name in tensors:
                    name += "_"
                names[identity] = name
                tensors[name] = value.detach()
            return {"tensor": names[identity]}
        if isinstance(value, dict):
            if any(isinstance(key, Tensor) for key in value):
                raise TypeError(f"state: expected no tensors as keys, got one at {'.'.join(path)}")
            items = value.items()
            return {"dict": [[take(k, (*path, "key")), take(v, (*path, str(k)))] for k, v in items]}
        if type(value) in (list, tuple):
            items = [take(v, (*path, str(i))) for i, v in enumerate(value)]
            return items if type(value) is list else {"tuple": items}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(
            f"state: expected tensors, dicts, lists, tuples, numbers, strings, booleans and None, "
            f"got {type(value).__name__} at {'.'.join(path) or 'the top'}"
        )

    return tensors, take(state, ())


def unflatten_state(tensors: Mapping[str, Tensor], structure: Any) -> Any:
    """Puts together what `flatten_state` took apart.

    Args:
        tensors: those of `flatten_state`; more do no harm.
        structure: that of `flatten_state`, also after JSON.

    Returns:
        The state; a tensor that was there twice is one object in two places.

    Raises:
        ValueError: a tensor is missing, or the structure is none.
    """
    if isinstance(structure, list):
        return [unflatten_state(tensors, item) for item in structure]
    if not isinstance(structure, dict):
        return structure
    match structure:
        case {"tensor": str(name)}:
            if name not in tensors:
                raise ValueError(f"tensors: expected one named {name!r}, got none")
            return tensors[name]
        case {"tuple": [*items]}:
            return tuple(unflatten_state(tensors, item) for item in items)
        case {"dict": [*items]}:
            return {
                unflatten_state(tensors, key): unflatten_state(tensors, value)
                for key, value in items
            }
    raise ValueError(f"structure: expected one of flatten_state, got keys {sorted(structure)}")


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


def _identity(tensor: Tensor) -> tuple:
    """Equal for two tensors that are the same elements of the same memory."""
    if not tensor.numel():
        return (id(tensor),)
    place = (tensor.device, tensor.data_ptr(), tensor.dtype)
    return (*place, tuple(tensor.shape), tensor.stride())


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
        json.loads((path / _STATE).read_text(encoding="utf-8"))
        # Reads the header alone, and compares the file's length with it.
        with safe_open(path / _TENSORS, "pt"):
            return True
    except (OSError, ValueError, SafetensorError):
        return False


def _hide(path: Path) -> Path:
    """Takes a checkpoint's name away in one step: its files cannot be removed in one."""
    return path.rename(path.parent / f"{_UNFINISHED}{path.name}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
