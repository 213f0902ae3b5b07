"""Image edits: InstructPix2Pix, MagicBrush, EVR and MA5K in their published files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from setokim.data.conversations import Conversation, message
from setokim.data.file_dataset import FileDataset
from setokim.data.readers.edit_folders import EditFolders, has_edit_folders
from setokim.data.readers.edit_turns import EditTurns, find_turns
from setokim.data.readers.files import (
    check_root,
    decode_image,
    field_of,
    file_in,
    find_file,
    read_image,
)
from setokim.data.records import JsonList, ParquetRows, json_of
from setokim.data.samples import BrokenSampleError

# Columns of the image before, the instruction and the image after, by data set.
_COLUMNS = {
    "instructpix2pix": ("original_image", "edit_prompt", "edited_image"),
    "magicbrush": ("source_img", "instruction", "target_img"),
}
# Columns that identify an edit.
_FACTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"instructpix2pix": (), "magicbrush": ("img_id", "turn_index")}
)
# MagicBrush has two texts for each edited image: of the result of the edit, and of the whole image.
DESCRIPTIONS = ("local", "global")
# The same for lists in JSON, whose fields are names of files.
_FIELDS = {"evr": ("img0", "sents", "img1"), "ma5k": ("input", "request", "output")}
# Paths of the list of a split.
_LISTS = {
    "evr": ("{split}.json", "data/{split}.json"),
    "ma5k": ("annotations/{split}_sess_1.json",),
}


class Edits(FileDataset):
    """One edit a sample: an image and an instruction, answered by the edited image.

    `facts`: "instruction", and "caption", a text about the edited image, or None. MagicBrush, whose
    turns follow one another, adds "img_id" and "turn_index".

    Args:
        root: folder with SPLIT-*.parquet, or data/SPLIT-*.parquet, as on the hub; or with
            InstructPix2Pix's published folders (see `EditFolders`), or MagicBrush's published test
            split, a zip file or its content (see `EditTurns`). For that split also
            local_descriptions.json or global_descriptions.json.
        name: "instructpix2pix" or "magicbrush".
        split: name of the split, such as "train", "dev" or "test".
        descriptions: kind of MagicBrush's texts to take as captions: "local", on the result of the
            edit, as for its published CLIP-T, or "global", on the whole image.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the data set is unknown, a file is missing or holds something else, or only the
            other kind of descriptions is there.
    """

    def __init__(
        self, root: str | Path, name: str, split: str = "train", descriptions: str = "local"
    ):
        if name not in _COLUMNS:
            raise ValueError(f"name: expected one of {', '.join(_COLUMNS)}, got {name!r}")
        if descriptions not in DESCRIPTIONS:
            expected = f"one of {', '.join(DESCRIPTIONS)}"
            raise ValueError(f"descriptions: expected {expected}, got {descriptions!r}")
        self._name, folder = name, check_root(root)
        pattern = f"{split}-*.parquet"
        paths = sorted(folder.glob(pattern)) or sorted(folder.glob(f"data/{pattern}"))
        turns = find_turns(folder) if name == "magicbrush" and split == "test" else None
        if paths:
            self._records: ParquetRows | EditTurns | EditFolders = ParquetRows(paths)
        elif name == "instructpix2pix" and has_edit_folders(folder):
            self._records = EditFolders(folder, split)
        elif turns is not None:
            self._records = EditTurns(turns)
        else:
            raise ValueError(f"root: expected {pattern} in {root} or its folder data, got none")
        self._descriptions = {}
        if name == "magicbrush":
            self._descriptions = _descriptions(folder, self._records, descriptions)

    def __len__(self) -> int:
        return len(self._records)

    def _source(self, index: int) -> str:
        return self._records.source(index)

    def _read(self, index: int, source: str) -> Conversation:
        record = self._records[index]
        before, prompt, after = _COLUMNS[self._name]
        instruction = field_of(record, prompt, str, source)
        images = [decode_image(record.get(name), source, name) for name in (before, after)]
        own = {name: field_of(record, name, (str, int), source) for name in _FACTS[self._name]}
        facts = own | {"caption": self._caption(record)}
        return _edit(images[0], instruction, images[1], source, facts)

    def _caption(self, record: dict[str, Any]) -> str | None:
        if self._name == "instructpix2pix":
            caption = record.get("edited_prompt")
        else:
            image = str(record["img_id"])
            captions = self._descriptions.get(image)
            name = f"{image}-output{record['turn_index']}.png"
            caption = captions.get(name) if isinstance(captions, dict) else None
        return caption if isinstance(caption, str) else None


class ListedEdits(FileDataset):
    """Edits of photographs listed in a JSON file, with the samples of `Edits`.

    `facts`: "instruction", "instructions" (all requests of the annotators for the pair), "caption"
    (None).

    Args:
        root: folder with the folder images, and with SPLIT.json or data/SPLIT.json of the Image
            Editing Request data ("evr": H. Tan et al., "Expressing Visual Relationships via
            Language", 2019), or annotations/SPLIT_sess_1.json of the requests for MIT-Adobe FiveK
            ("ma5k": J. Shi et al., "Learning by Planning: Language-Guided Global Image Editing",
            2021).
        name: "evr" or "ma5k".
        split: "train", "valid" or "val", or "test".

    Raises:
        OSError, ValueError: the data set is unknown, or a file is missing or holds something else.
    """

    def __init__(self, root: str | Path, name: str, split: str = "test"):
        if name not in _FIELDS:
            raise ValueError(f"name: expected one of {', '.join(_FIELDS)}, got {name!r}")
        self._folder, self._fields = check_root(root), _FIELDS[name]
        paths = [path.format(split=split) for path in _LISTS[name]]
        self._records = JsonList(find_file(self._folder, *paths))

    def __len__(self) -> int:
        return len(self._records)

    def _source(self, index: int) -> str:
        return self._records.source(index)

    def _read(self, index: int, source: str) -> Conversation:
        record = self._records[index]
        before, prompt, after = self._fields
        texts = field_of(record, prompt, (str, list), source)
        requests = [texts] if isinstance(texts, str) else texts
        if not requests or not all(isinstance(text, str) for text in requests):
            raise BrokenSampleError(source, f"{prompt}: expected texts, got {texts!r:.80}")
        images = [
            read_image(file_in(self._folder, f"images/{name}", source), source)
            for name in (field_of(record, field, str, source) for field in (before, after))
        ]
        facts = {"instructions": requests, "caption": None}
        return _edit(images[0], requests[0], images[1], source, facts)


def _descriptions(folder: Path, records: ParquetRows | EditTurns, kind: str) -> dict[str, Any]:
    """Read MagicBrush's texts by image from the folder or archive; empty for a split without."""
    paths = {one: folder / f"{one}_descriptions.json" for one in DESCRIPTIONS}
    data = {one: path.read_bytes() if path.is_file() else None for one, path in paths.items()}
    if isinstance(records, EditTurns):
        data = {one: data[one] or records.beside(path.name) for one, path in paths.items()}
    there = [one for one in DESCRIPTIONS if data[one] is not None]
    if there and kind not in there:
        # CLIP-T would be missing, or computed on the other texts.
        got = f"{paths[there[0]].name} alone (descriptions={there[0]!r} selects it)"
        raise ValueError(f"root: expected {paths[kind].name} in {folder}, got {got}")
    found = json_of(data[kind], str(paths[kind])) if there else {}
    if not isinstance(found, dict):
        raise ValueError(
            f"{paths[kind]}: expected an object with one entry per image, got another value"
        )
    return found


def _edit(before, instruction: str, after, source: str, facts: dict[str, Any]) -> Conversation:
    turns = message("user", before, instruction), message("assistant", after)
    return Conversation("edit", turns, (), source, {"instruction": instruction} | facts)
