"""InstructPix2Pix in the folders of its authors: prompt.json beside SEED_0.jpg and SEED_1.jpg."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from setokim.data.readers.files import field_of, file_in
from setokim.data.records import read_json
from setokim.data.samples import BrokenSampleError, check_index

_SEEDS, _PROMPT = "seeds.json", "prompt.json"
_BEFORE, _AFTER = "_0.jpg", "_1.jpg"
# Fractions of the folders where the splits of the official loader begin and end.
_SPLITS = {"train": (0.0, 0.9), "val": (0.9, 0.95), "test": (0.95, 1.0)}


class EditFolders:
    """Records of the folders with the bytes of their images, in the fields of the parquet.

    A record is one pair of images; the official loader takes a random pair of each folder.

    Args:
        root: folder with one folder for each instruction, and usually seeds.json, the list of
            folders and their seeds. Without it, all folders with a prompt in sorted order count.
        split: "train", "val" or "test": the first 90 %, the next and the last 5 % of the folders.

    Raises:
        OSError, ValueError: the split is unknown or empty, or seeds.json holds something else.
    """

    def __init__(self, root: Path, split: str):
        if split not in _SPLITS:
            raise ValueError(f"split: expected one of {', '.join(_SPLITS)}, got {split!r}")
        self._root = root
        folders = _listed(root / _SEEDS) if (root / _SEEDS).is_file() else _found(root)
        start, end = (math.floor(fraction * len(folders)) for fraction in _SPLITS[split])
        self._pairs = [(name, seed) for name, seeds in folders[start:end] for seed in seeds]
        if not self._pairs:
            raise ValueError(f"split: expected pairs of images in {root}, got none in {split!r}")

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        check_index(index, len(self))
        (name, seed), source = self._pairs[index], self.source(index)
        folder = file_in(self._root, name, source)
        try:
            prompt = read_json(folder / _PROMPT)
            before, after = ((folder / f"{seed}{end}").read_bytes() for end in (_BEFORE, _AFTER))
        except (OSError, ValueError) as error:
            raise BrokenSampleError(source, f"cannot read it: {error}") from error
        instruction = field_of(prompt, "edit", str, source)
        return {
            "original_image": before,
            "edit_prompt": instruction,
            "edited_image": after,
            "edited_prompt": prompt.get("output"),
        }

    def source(self, index: int) -> str:
        name, seed = self._pairs[index]
        return f"{self._root / name}: seed {seed}"


def has_edit_folders(root: Path) -> bool:
    """Return whether a folder has seeds.json or a folder with a prompt."""
    return (root / _SEEDS).is_file() or next(root.glob(f"*/{_PROMPT}"), None) is not None


def _listed(path: Path) -> list[tuple[str, list[str]]]:
    """Read the names of the folders and their seeds, in the order of the file."""
    found = read_json(path)
    try:
        return [(str(name), [str(seed) for seed in seeds]) for name, seeds in found]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a list of folders and their seeds, got {error}") from (
            error
        )


def _found(root: Path) -> list[tuple[str, list[str]]]:
    folders = sorted(path.parent for path in root.glob(f"*/{_PROMPT}"))
    return [
        (folder.name, sorted(one.name.removesuffix(_BEFORE) for one in folder.glob(f"*{_BEFORE}")))
        for folder in folders
    ]
