"""Conversations in LLaVA's JSON format: LLaVA-665K and ALLaVA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from setokim.data.conversations import ROLES, Conversation, message
from setokim.data.file_dataset import FileDataset
from setokim.data.readers.files import check_root, field_of, file_in, read_image
from setokim.data.records import JsonList
from setokim.data.samples import BrokenSampleError

_IMAGE = "<image>"
_ASSISTANT = "gpt"
_SPEAKERS = {"human": "user", _ASSISTANT: "assistant"}
_IDS = ("id", "idx")


class Chats(FileDataset):
    """LLaVA-665K and ALLaVA: turns of "human" and "gpt", with or without images.

    A turn of "gpt" at the beginning is dropped, as in LLaVA's own loader. A single image comes
    before the first question, wherever its "<image>" stands; several images replace the "<image>"
    of the questions in order. In answers, and in conversations without an image, "<image>" is text.
    `facts`: "id" (or "idx", or None).

    Args:
        root: folder of the data set, to which the records' image paths are relative.
        file: path of the JSON list, relative to `root`, such as "llava_v1_5_mix665k.json".

    Raises:
        OSError, ValueError: a file is missing or holds something else.
    """

    def __init__(self, root: str | Path, file: str):
        self._root = check_root(root)
        self._records = JsonList(self._root / file)

    def __len__(self) -> int:
        return len(self._records)

    def _source(self, index: int) -> str:
        return self._records.source(index)

    def _read(self, index: int, source: str) -> Conversation:
        record = self._records[index]
        turns = field_of(record, "conversations", list, source)
        if turns and field_of(turns[0], "from", str, source) == _ASSISTANT:
            turns = turns[1:]
        if not turns or len(turns) % 2:
            reason = f"conversations: expected pairs of turns, got {len(turns)} turns"
            raise BrokenSampleError(source, reason)
        texts = [_text(turn, ROLES[i % 2], source) for i, turn in enumerate(turns)]
        names = _names(record, source)
        images = [read_image(file_in(self._root, name, source), source) for name in names]
        contents = _contents(texts, images, source)
        messages = tuple(message(ROLES[i % 2], *parts) for i, parts in enumerate(contents))
        facts = {"id": next((record[name] for name in _IDS if name in record), None)}
        return Conversation("vqa" if images else "text", messages, (), source, facts)


def _text(turn: Any, role: str, source: str) -> str:
    speaker = field_of(turn, "from", str, source)
    if _SPEAKERS.get(speaker) != role:
        expected = next(name for name, known in _SPEAKERS.items() if known == role)
        raise BrokenSampleError(source, f"from: expected {expected}, got {speaker!r}")
    return field_of(turn, "value", str, source)


def _names(record: Any, source: str) -> list[str]:
    """Return the files of a record's images, none or several."""
    value = record.get("image")
    if value is None or value == "":
        return []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BrokenSampleError(source, f"image: expected str or list of str, got {value!r:.80}")
    return names


def _contents(
    texts: list[str], images: list[Image.Image], source: str
) -> list[list[str | Image.Image]]:
    """Return the texts and images of each message."""
    contents: list[list[Any]] = [[text.strip()] for text in texts]
    if images:
        contents[::2] = [[text.replace(_IMAGE, "").strip()] for text in texts[::2]]
    if len(images) < 2:
        contents[0] = [*images, *contents[0]]
        return contents
    expected = sum(text.count(_IMAGE) for text in texts[::2])
    if expected != len(images):
        reason = f"image: expected one for each of {expected} {_IMAGE}, got {len(images)}"
        raise BrokenSampleError(source, reason)
    rest = iter(images)
    for number in range(0, len(texts), 2):
        first, *others = (piece.strip() for piece in texts[number].split(_IMAGE))
        parts = [first, *(part for piece in others for part in (next(rest), piece))]
        contents[number] = [part for part in parts if part != ""] or [""]
    return contents
