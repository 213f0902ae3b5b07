"""Tensors of a saved transformers model, read lazily, without the model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class SavedTensors(Mapping):
    """Mapping of the tensors of a folder by name, from one safetensors file or several.

    Args:
        folder: folder written by `save_pretrained`.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        self._files = {}
        for path in _files(folder):
            try:
                file = safe_open(path, "pt")
            except SafetensorError as error:
                raise ValueError(f"{path}: expected safetensors, got {error}") from error
            self._files |= dict.fromkeys(file.keys(), file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Read the tensors whose names begin with `prefix`, by the rest of their names."""
        return {n.removeprefix(prefix): self[n] for n in self if n.startswith(prefix)}


def _files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if (folder / _WHOLE).is_file() or not index.is_file():
        return [folder / _WHOLE]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: expected a weight_map, got {error!r}") from error
    return [folder / name for name in sorted(names)]
