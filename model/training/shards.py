"""Reads and names the safetensors files of a checkpoint: one file, or rows in several."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

_WHOLE = "tensors.safetensors"
_PART = re.compile(r"tensors-\d{5}-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class Shards:
    """Part of a checkpoint that one process writes.

    Attributes:
        process: index of the process.
        processes: number of all processes.
        rows: first row in this process and number of rows in all, by the name of a sharded tensor.
        gather: function that returns the values of all processes in order; all call it together.
    """

    process: int = 0
    processes: int = 1
    rows: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    gather: Callable[[Any], list[Any]] = lambda value: [value]

    @property
    def file(self) -> str:
        """Name of the file of this process."""
        if self.processes == 1:
            return _WHOLE
        return f"tensors-{self.process:05d}-of-{self.processes:05d}.safetensors"

    @property
    def metadata(self) -> dict[str, str] | None:
        """Metadata of the safetensors file; None without sharded tensors."""
        return {"rows": json.dumps(dict(self.rows))} if self.rows else None


class StoredTensors(Mapping):
    """Mapping of a checkpoint's tensors by name, read lazily from its files.

    Args:
        folder: folder of the files.

    Raises:
        OSError: a file is missing.
        ValueError: a file is broken, or rows of a tensor are missing.
    """

    def __init__(self, folder: Path):
        # name: [(file, first row, number of rows, number of rows in all files)], in row order
        self._parts: dict[str, list[tuple]] = {}
        for path in tensor_files(folder):
            try:
                file = safe_open(path, "pt")
            except SafetensorError as error:
                raise ValueError(f"{path.name}: {error}") from error
            rows = json.loads((file.metadata() or {}).get("rows", "{}"))
            for name in file.keys():  # noqa: SIM118, not a dict
                start, total = rows.get(name, (0, None))
                length = None if total is None else file.get_slice(name).get_shape()[0]
                self._parts.setdefault(name, []).append((file, start, length, total))
        for name, parts in self._parts.items():
            total, found = parts[0][3], sum(part[2] or 0 for part in parts)
            if total is not None and found != total:
                raise ValueError(f"{folder}: expected {total} rows of {name}, got {found}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, name: str) -> Tensor:
        parts = self._parts[name]
        if len(parts) == 1:
            return parts[0][0].get_tensor(name)
        return torch.cat([file.get_tensor(name) for file, *_ in parts])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        file, _, _, total = self._parts[name][0]
        shape = file.get_slice(name).get_shape()
        return tuple(shape) if total is None else (total, *shape[1:])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return the rows from `start` to `stop` - 1 of a tensor with at least one dimension."""
        found = []
        for file, first, length, _ in self._parts[name]:
            part = file.get_slice(name)
            begin, end = max(start - first, 0), stop - first
            if length is not None:
                end = min(end, length)
            if begin < end or len(self._parts[name]) == 1:
                found.append(part[begin : max(begin, end)])
        return torch.cat(found) if found else self[name][:0]


@dataclass(frozen=True)
class StoredTensor:
    """Reference to a tensor of a checkpoint, for reading it as a whole or in part.

    Attributes:
        stored: tensors of the checkpoint.
        name: name of the tensor.
    """

    stored: StoredTensors
    name: str

    def read(self, like: Tensor | None = None) -> Tensor:
        """Read the tensor.

        Args:
            like: sharded tensor of the same shape, to read the rows of this process only. Any
                other value reads the whole tensor.
        """
        if not isinstance(like, DTensor) or tuple(like.shape) != self.stored.shape(self.name):
            return self.stored[self.name]
        start, stop = rows_of(like)
        return DTensor.from_local(
            self.stored.rows(self.name, start, stop).to(like.device),
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )


def rows_of(x: DTensor) -> tuple[int, int]:
    """Return the first row and the end of the rows of a distributed tensor in this process.

    Raises:
        ValueError: the tensor is not sharded by rows over one dimension of processes.
    """
    if x.placements != (Shard(0),):
        raise ValueError(f"x: expected a tensor sharded by rows, got {x.placements}")
    return row_range(x.shape[0], x.device_mesh.get_local_rank(), x.device_mesh.size())


def row_range(length: int, process: int, processes: int) -> tuple[int, int]:
    """Return the first row and the end of the rows of a process, as in `torch.chunk`."""
    step = math.ceil(length / processes)
    start = min(step * process, length)
    return start, min(start + step, length)


def tensor_files(folder: Path) -> list[Path]:
    """Return the paths of a checkpoint's tensor files; some may be missing."""
    for path in folder.iterdir():
        match = _PART.fullmatch(path.name)
        if match:
            number = int(match[1])
            return [folder / Shards(process, number).file for process in range(number)]
    return [folder / _WHOLE]
