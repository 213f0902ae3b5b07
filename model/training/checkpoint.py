"""Writes, verifies and reads checkpoints as safetensors and JSON, without pickle.

A checkpoint is a folder `checkpoint-00001234` with `state.json` and `tensors.safetensors`. If each
of n processes writes its rows, the files are `tensors-00000-of-0000n.safetensors` and so on; the
metadata of a file have its rows. `SHA256SUMS` has the checksums of all files, in the format of
`sha256sum -c`. A checkpoint is written under another name and renamed when all of it is on the
disk. A killed process thus leaves at worst a hidden folder, which the next save removes.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from setokim.training.shards import Shards, StoredTensors, tensor_files
from setokim.utils.checksums import SUMS, checksum, format_sums, read_sums
from setokim.utils.distributed import run_on_all_ranks
from setokim.utils.files import UNFINISHED, naming, sync

_STATE = "state.json"
_NAME = re.compile(r"checkpoint-(\d{8,})")


def save_checkpoint(
    folder: str | Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int = 3,
    shards: Shards | None = None,
) -> Path:
    """Write a checkpoint, then remove all but the newest.

    Only one process at a time may save into a folder, or with `shards` all processes of a run
    together. A checkpoint of the same step is replaced. The other checkpoints stay available
    throughout.

    Args:
        folder: folder of the checkpoints; created if it does not exist.
        step: number of the step, at least 0.
        tensors: tensors by name, of any shape, dtype, strides and device. They may share memory and
            are copied to the CPU.
        state: nested dicts with string keys, lists, strings, numbers, booleans and None.
        keep: number of checkpoints to keep: those of the highest steps, this one in any case.
        shards: part of this process if all write together; None for a single writer. Process 0
            writes the state, and all share its folder. `tensors` then has the part of this process
            only.

    Returns:
        Folder of the checkpoint.

    Raises:
        ValueError: `step` is negative, `keep` is less than 1, or another process failed.
        TypeError: `state` has a value that JSON does not preserve.
        OSError: the folder cannot be written, or the disk is full; older checkpoints stay.
    """
    if step < 0:
        raise ValueError(f"step: expected at least 0, got {step}")
    if keep < 1:
        raise ValueError(f"keep: expected at least 1, got {keep}")
    _check_json("state", dict(state))
    folder = Path(folder)
    shards = shards or Shards()
    unfinished = folder / f"{UNFINISHED}{step}"
    final = folder / f"checkpoint-{step:08d}"
    first = shards.process == 0

    def begin() -> None:
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f"{UNFINISHED}*"):
                _remove(leftover)
            unfinished.mkdir()

    def finish(sums: Mapping[str, str]) -> None:
        if first:
            _write(unfinished / _STATE, json.dumps(dict(state), indent=1))
            sums = {_STATE: checksum(unfinished / _STATE), **sums}
            _write(unfinished / SUMS, format_sums(sums))
            sync(unfinished)
            _finish(unfinished, final, keep)

    try:
        run_on_all_ranks(begin, shards.gather)
        found = run_on_all_ranks(lambda: _write_tensors(unfinished, tensors, shards), shards.gather)
        run_on_all_ranks(lambda: finish(dict(found)), shards.gather)
    except Exception:
        if first:
            # A leftover would take space on a full disk.
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return final


def checkpoints(folder: str | Path) -> list[Path]:
    """Return the folders with names of checkpoints by step, damaged ones included."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def latest_checkpoint(folder: str | Path) -> Path | None:
    """Return the complete checkpoint of the highest step; None without any.

    A checkpoint is complete if its files exist in full length. `verify_checkpoint` also compares
    their contents.
    """
    complete = (path for path in reversed(checkpoints(folder)) if _is_complete(path))
    return next(complete, None)


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint of `save_checkpoint`.

    Args:
        path: folder of the checkpoint.

    Returns:
        Tensors by name, on the CPU, and the state.

    Raises:
        ValueError: the checkpoint is incomplete or differs from its checksums.
    """
    verify_checkpoint(path)
    tensors, state = open_checkpoint(path)
    return {name: tensors[name] for name in tensors}, state


def open_checkpoint(path: str | Path) -> tuple[StoredTensors, dict[str, Any]]:
    """Open a checkpoint without verifying it; its tensors are read lazily.

    Args:
        path: folder of the checkpoint.

    Returns:
        Tensors by name, and the state.

    Raises:
        ValueError: the checkpoint is incomplete.
    """
    path = Path(path)
    try:
        return StoredTensors(path), _read_state(path)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"path: expected a complete checkpoint, got {path}: {error}") from error


def verify_checkpoint(path: str | Path, process: int = 0, processes: int = 1) -> bool:
    """Compare the files of a checkpoint with its checksums.

    Args:
        path: folder of the checkpoint.
        process: index of this process, if several verify a part of the files each.
        processes: number of all processes.

    Returns:
        True if the checkpoint has checksums; one of an earlier version has none.

    Raises:
        ValueError: the checkpoint is incomplete, or a file differs; the message names the file.
    """
    path = Path(path)
    open_checkpoint(path)
    if not (path / SUMS).exists():
        return False
    try:
        sums = read_sums(path)
        expected = {_STATE, *(file.name for file in tensor_files(path))}
        if sums.keys() != expected:
            raise ValueError(f"{SUMS}: expected {sorted(expected)}, got {sorted(sums)}")
        for name in sorted(sums)[process::processes]:
            found = checksum(path / name)
            if found != sums[name]:
                raise ValueError(f"{name}: expected the checksum {sums[name]}, got {found}")
    except (OSError, ValueError) as error:
        raise ValueError(f"path: expected a complete checkpoint, got {path}: {error}") from error
    return True


def rng_state() -> dict[str, Tensor]:
    """Return the states of torch's default generators: "cpu", and "cuda" if there is a GPU."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_state(states: Mapping[str, Tensor]) -> None:
    """Restore the generators from the result of `rng_state`.

    Raises:
        ValueError: the states belong to other devices than this machine has, so that the run could
            not continue exactly.
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


def _is_complete(path: Path) -> bool:
    try:
        # Reads the headers only and compares the lengths of the files with them.
        open_checkpoint(path)
    except ValueError:
        return False
    return True


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor], shards: Shards) -> tuple[str, str]:
    """Write the tensor file of one process; return its name and checksum."""
    # Separate copies, as safetensors rejects tensors that share memory.
    copies = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    file = folder / shards.file
    with naming(file):
        save_file(copies, file, shards.metadata)
        sync(file)
        # The checksum reads the page cache, not the disk.
        return file.name, checksum(file)


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{_STATE}: expected JSON, got {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{_STATE}: expected an object, got {type(state).__name__}")
    return state


def _write(path: Path, content: str) -> None:
    with naming(path):
        path.write_text(content, encoding="utf-8")
        sync(path)


def _finish(unfinished: Path, final: Path, keep: int) -> None:
    """Give a checkpoint its final name and remove the oldest surplus ones."""
    folder = final.parent
    removed = [_hide(final)] if final.exists() else []
    unfinished.rename(final)
    sync(folder)
    others = [path for path in checkpoints(folder) if path != final]
    removed += [_hide(path) for path in others[: max(0, len(others) - (keep - 1))]]
    for path in removed:
        shutil.rmtree(path)


def _hide(path: Path) -> Path:
    """Rename a checkpoint to a hidden folder, because its files cannot be removed atomically."""
    return path.rename(path.parent / f"{UNFINISHED}{path.name}")


def _remove(path: Path) -> None:
    """Remove a folder or file that a killed process left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
