"""Pictures before and after an instruction: InstructPix2Pix and MagicBrush, in parquet files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from setokim.data.conversations import Conversation, message
from setokim.data.readers.files import check_root, field_of, picture_in
from setokim.data.records import ParquetRows
from setokim.data.samples import check_index

# By data set, the columns of the picture before, the instruction and the picture after.
_COLUMNS = {
    "instructpix2pix": ("original_image", "edit_prompt", "edited_image"),
    "magicbrush": ("source_img", "instruction", "target_img"),
}
# Columns that say which edit it is.
_FACTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"instructpix2pix": (), "magicbrush": ("img_id", "turn_index")}
)


class Edits:
    """One edit a sample: a picture and an instruction, and the picture that answers them.

    `facts`: "instruction"; of MagicBrush also "img_id" and "turn_index", whose turns follow one
    another.

    Args:
        root: folder with SPLIT-*.parquet, or data/SPLIT-*.parquet, as the hub has them.
        name: "instructpix2pix" or "magicbrush".
        split: such as "train", "dev" or "test".

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: there is no such file, or no such data set.
    """

    def __init__(self, root: str | Path, name: str, split: str = "train"):
        if name not in _COLUMNS:
            raise ValueError(f"name: expected one of {', '.join(_COLUMNS)}, got {name!r}")
        self._name, folder = name, check_root(root)
        pattern = f"{split}-*.parquet"
        paths = sorted(folder.glob(pattern)) or sorted(folder.glob(f"data/{pattern}"))
        if not paths:
            raise ValueError(f"root: expected {pattern} in {root} or its folder data, got none")
        self._records = ParquetRows(paths)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Conversation:
        check_index(index, len(self))
        source, record = self._records.source(index), self._records[index]
        before, prompt, after = _COLUMNS[self._name]
        instruction = field_of(record, prompt, str, source)
        pictures = [picture_in(record.get(name), source, name) for name in (before, after)]
        facts: dict[str, Any] = {"instruction": instruction}
        facts |= {name: field_of(record, name, (str, int), source) for name in _FACTS[self._name]}
        turns = message("user", pictures[0], instruction), message("assistant", pictures[1])
        return Conversation("edit", turns, (), source, facts)
