"""Conversations in the JSON of LLaVA, which ALLaVA shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from setokim.data.conversations import ROLES, Conversation, message
from setokim.data.readers.files import check_root, field_of, picture_of
from setokim.data.records import JsonList
from setokim.data.samples import BrokenSampleError, check_index

_PLACE = "<image>"
_SPEAKERS = {"human": "user", "gpt": "assistant"}


class Chats:
    """LLaVA-665K and ALLaVA: turns of "human" and "gpt", with a picture or without.

    The picture stands before the first question, wherever its "<image>" does. In answers, and in
    conversations without a picture, "<image>" is text. `facts`: "id".

    Args:
        root: folder that the records' paths of pictures begin at.
        file: JSON list, relative to `root`, such as "llava_v1_5_mix665k.json".

    Raises:
        OSError, ValueError: a file is not there or holds something else.
    """

    def __init__(self, root: str | Path, file: str):
        self._root = check_root(root)
        self._records = JsonList(self._root / file)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Conversation:
        check_index(index, len(self))
        source, record = self._records.source(index), self._records[index]
        turns = field_of(record, "conversations", list, source)
        if not turns or len(turns) % 2:
            reason = f"conversations: expected pairs of turns, got {len(turns)} turns"
            raise BrokenSampleError(source, reason)
        shown = "image" in record
        texts = [_text(turn, ROLES[i % 2], source, shown) for i, turn in enumerate(turns)]
        messages = [message(ROLES[i % 2], text) for i, text in enumerate(texts)]
        if "image" in record:
            name = field_of(record, "image", str, source)
            picture = picture_of(self._root / name, source)
            messages[0] = message("user", picture, texts[0])
        facts = {"id": field_of(record, "id", (str, int), source)}
        task = "vqa" if "image" in record else "text"
        return Conversation(task, tuple(messages), (), source, facts)


def _text(turn: Any, role: str, source: str, shown: bool) -> str:
    speaker = field_of(turn, "from", str, source)
    if _SPEAKERS.get(speaker) != role:
        expected = next(name for name, known in _SPEAKERS.items() if known == role)
        raise BrokenSampleError(source, f"from: expected {expected}, got {speaker!r}")
    text = field_of(turn, "value", str, source)
    return (text.replace(_PLACE, "") if shown and role == "user" else text).strip()
