"""Conversations about pictures: the samples of stages 2 and 3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

TASKS = ("vqa", "caption", "locate", "generate", "edit", "segment", "text")
ROLES = ("user", "assistant")
# Tokens that stand for pictures and masks: the place of a visual token, where a picture that is
# drawn begins and ends, and a mask.
IMAGE, IMAGE_START, IMAGE_END, SEG = "<image>", "<img>", "</img>", "[SEG]"
SPECIAL = (IMAGE, IMAGE_START, IMAGE_END, SEG)


@dataclass(frozen=True, eq=False)
class Conversation:
    """Messages with text and pictures, the masks they speak of, and what is true of them.

    Attributes:
        task: One of `TASKS`.
        messages: In the chat format of Hugging Face, {"role": ..., "content": [{"type": "text",
            "text": ...} or {"type": "image", "image": a PIL picture of mode RGB}, ...]}. The user
            begins, the roles take turns, and the assistant has the last word.
        masks: (h, w) bool for each "[SEG]" in the assistant's texts, in their order; h and w are
            those of the last picture before it.
        source: The file and its member, or the name and number of a drawn sample.
        facts: Plain values that an evaluation needs.

    Raises:
        TypeError, ValueError: A field is none of these.
    """

    task: str
    messages: tuple[dict[str, Any], ...]
    masks: tuple[np.ndarray, ...] = ()
    source: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {self.task!r}")
        if not self.messages or len(self.messages) % 2:
            raise ValueError(
                f"messages: expected an even number of at least 2, got {len(self.messages)}"
            )
        sizes = list(_sizes_of_masks(self.messages))
        if len(self.masks) != len(sizes):
            raise ValueError(
                f"masks: expected one for each of {len(sizes)} {SEG}, got {len(self.masks)}"
            )
        for number, (mask, size) in enumerate(zip(self.masks, sizes, strict=True)):
            _check_mask(f"masks[{number}]", mask, size)


def message(role: str, *content: str | Image.Image) -> dict[str, Any]:
    """A message of a conversation from its texts and pictures.

    Args:
        role: "user" or "assistant".
        *content: Texts and pictures in their order.
    """
    parts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in content
    ]
    return {"role": role, "content": parts}


def _sizes_of_masks(messages: tuple[dict[str, Any], ...]) -> Iterator[tuple[int, int]]:
    """Checks the messages; yields the height and width that each mask must have."""
    size = None
    for number, one in enumerate(messages):
        name, role = f"messages[{number}]", ROLES[number % 2]
        if not isinstance(one, Mapping) or set(one) != {"role", "content"}:
            raise ValueError(f"{name}: expected a dict of role and content, got {one!r}")
        if one["role"] != role:
            raise ValueError(f"{name}: expected the role {role}, got {one['role']!r}")
        if not isinstance(one["content"], (list, tuple)) or not one["content"]:
            raise ValueError(f"{name}: expected a list of parts, got {one['content']!r}")
        for part in one["content"]:
            if _is_image(name, part):
                size = part["image"].height, part["image"].width
            elif role == "assistant" and SEG in part["text"]:
                if size is None:
                    raise ValueError(f"{name}: expected a picture before {SEG}, got none")
                yield from [size] * part["text"].count(SEG)


def _is_image(name: str, part: Any) -> bool:
    """Whether a part is a picture; it is one or a text, or an error is raised."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("text", "image") or set(part) != {"type", kind}:
        raise ValueError(f"{name}: expected a part of type text or image, got {part!r}")
    if kind == "text":
        if not isinstance(part["text"], str):
            raise TypeError(f"{name}: expected a str as text, got {part['text']!r}")
        return False
    image = part["image"]
    if not isinstance(image, Image.Image):
        raise TypeError(f"{name}: expected a PIL picture as image, got {image!r}")
    if image.mode != "RGB":
        raise ValueError(f"{name}: expected a picture of mode RGB, got {image.mode}")
    return True


def _check_mask(name: str, mask: np.ndarray, size: tuple[int, int]) -> None:
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"{name}: expected a numpy array, got {mask!r}")
    if mask.dtype != bool or mask.shape != size:
        raise ValueError(f"{name}: expected bool of shape {size}, got {mask.dtype} {mask.shape}")
