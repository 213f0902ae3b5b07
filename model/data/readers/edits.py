"""Pictures before and after an instruction, in the files of four data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from setokim.data.conversations import Conversation, message
from setokim.data.file_dataset import FileDataset
from setokim.data.readers.edit_turns import EditTurns, find_turns
from setokim.data.readers.files import (
    check_root,
    field_of,
    file_in,
    find_file,
    picture_in,
    picture_of,
)
from setokim.data.records import JsonList, ParquetRows, json_of
from setokim.data.samples import BrokenSampleError

# By data set, the columns of the picture before, the instruction and the picture after.
_COLUMNS = {
    "instructpix2pix": ("original_image", "edit_prompt", "edited_image"),
    "magicbrush": ("source_img", "instruction", "target_img"),
}
# Columns that say which edit it is.
_FACTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"instructpix2pix": (), "magicbrush": ("img_id", "turn_index")}
)
# MagicBrush has two texts for each picture after an edit: what the edit made, and all it shows.
DESCRIPTIONS = ("local", "global")
# The same for lists in JSON, whose fields are names of files.
_FIELDS = {"evr": ("img0", "sents", "img1"), "ma5k": ("input", "request", "output")}
# Where the list of a split is.
_LISTS = {
    "evr": ("{split}.json", "data/{split}.json"),
    "ma5k": ("annotations/{split}_sess_1.json",),
}


class Edits(FileDataset):
    """One edit a sample: a picture and an instruction, and the picture that answers them.

    `facts`: "instruction", and "caption", what the picture after shows in words, or None; of
    MagicBrush also "img_id" and "turn_index", whose turns follow one another.

    Args:
        root: folder with SPLIT-*.parquet, or data/SPLIT-*.parquet, as the hub has them; or with
            MagicBrush's test split as its authors give it, a zip file or what is in it (see
            `EditTurns`). Of that split also local_descriptions.json or global_descriptions.json.
        name: "instructpix2pix" or "magicbrush".
        split: such as "train", "dev" or "test".
        descriptions: which of MagicBrush's texts are the captions: "local", what the edit made, as
            its published CLIP-T takes them, or "global", all that the picture shows.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: there is no such file, it holds something else, or there is no such data set;
            or the other descriptions are there and those asked for are not.
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
            self._records: ParquetRows | EditTurns = ParquetRows(paths)
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
        pictures = [picture_in(record.get(name), source, name) for name in (before, after)]
        own = {name: field_of(record, name, (str, int), source) for name in _FACTS[self._name]}
        facts = own | {"caption": self._caption(record)}
        return _edit(pictures[0], instruction, pictures[1], source, facts)

    def _caption(self, record: dict[str, Any]) -> str | None:
        if self._name == "instructpix2pix":
            caption = record.get("edited_prompt")
        else:
            picture = str(record["img_id"])
            captions = self._descriptions.get(picture)
            name = f"{picture}-output{record['turn_index']}.png"
            caption = captions.get(name) if isinstance(captions, dict) else None
        return caption if isinstance(caption, str) else None


class ListedEdits(FileDataset):
    """Edits of photographs that are listed in a JSON file; samples as of `Edits`.

    `facts`: "instruction", "instructions" (all requests that people wrote for the pair), "caption"
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
        OSError, ValueError: a file is not there or holds something else, or there is no such data
            set.
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
        said = field_of(record, prompt, (str, list), source)
        requests = [said] if isinstance(said, str) else said
        if not requests or not all(isinstance(one, str) for one in requests):
            raise BrokenSampleError(source, f"{prompt}: expected texts, got {said!r:.80}")
        pictures = [
            picture_of(file_in(self._folder, f"images/{name}", source), source)
            for name in (field_of(record, field, str, source) for field in (before, after))
        ]
        facts = {"instructions": requests, "caption": None}
        return _edit(pictures[0], requests[0], pictures[1], source, facts)


def _descriptions(folder: Path, records: ParquetRows | EditTurns, kind: str) -> dict[str, Any]:
    """MagicBrush's texts by picture, of the folder or archive; none where a split has none."""
    paths = {one: folder / f"{one}_descriptions.json" for one in DESCRIPTIONS}
    data = {one: path.read_bytes() if path.is_file() else None for one, path in paths.items()}
    if isinstance(records, EditTurns):
        data = {one: data[one] or records.beside(path.name) for one, path in paths.items()}
    there = [one for one in DESCRIPTIONS if data[one] is not None]
    if there and kind not in there:
        # CLIP-T would be left out, or be of the other texts.
        got = f"{paths[there[0]].name} alone (descriptions={there[0]!r} takes it)"
        raise ValueError(f"root: expected {paths[kind].name} in {folder}, got {got}")
    found = json_of(data[kind], str(paths[kind])) if there else {}
    if not isinstance(found, dict):
        raise ValueError(f"{paths[kind]}: expected an object by picture, got another value")
    return found


def _edit(before, instruction: str, after, source: str, facts: dict[str, Any]) -> Conversation:
    turns = message("user", before, instruction), message("assistant", after)
    return Conversation("edit", turns, (), source, {"instruction": instruction} | facts)
