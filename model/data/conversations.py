"""Conversations about images: the samples of stages 2 and 3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from setokim.data.stored_image import StoredImage

TASKS = ("vqa", "caption", "locate", "generate", "edit", "segment", "text")
ROLES = ("user", "assistant")
# Tokens that stand for images and masks: the position of a visual token, the start and the end of
# a generated image, and a mask.
IMAGE, IMAGE_START, IMAGE_END, SEG = "<image>", "<img>", "</img>", "[SEG]"
SPECIAL = (IMAGE, IMAGE_START, IMAGE_END, SEG)
# The part of the assistant's message that stands for a mask.
MASK = {"type": "mask"}


@dataclass(frozen=True, eq=False)
class Regions:
    """Named regions of an image.

    Attributes:
        labels: (h, w) integers, index of each pixel's region in `names`; -1 for no region.
        names: name of each region; "" for a region without a name.

    Raises:
        TypeError, ValueError: a field does not fit its description.
    """

    labels: np.ndarray
    names: tuple[str, ...]

    def __post_init__(self):
        labels = self.labels
        if not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, np.integer):
            raise TypeError(f"labels: expected an array of integers, got {labels!r}")
        if labels.ndim != 2 or not labels.size:
            raise ValueError(f"labels: expected shape (h, w), got {labels.shape}")
        if labels.min() < -1 or labels.max() >= len(self.names):
            expected = f"-1 to {len(self.names) - 1}, the indices of names"
            got = f"{labels.min()} to {labels.max()}"
            raise ValueError(f"labels: expected {expected}, got {got}")


@dataclass(frozen=True, eq=False)
class Conversation:
    """A conversation: messages of text and images, with their masks and ground-truth facts.

    Attributes:
        task: name of the task, one of `TASKS`.
        messages: turns in the chat format of Hugging Face, {"role": ..., "content": [{"type":
            "text", "text": ...}, {"type": "image", "image": a PIL image of mode RGB or a
            `StoredImage`} or, in a turn of the assistant, `MASK`, ...]}. The user begins, the
            roles alternate, and the assistant ends. Any text is allowed: names of special tokens
            have no effect in it.
        masks: (h, w) bool for each `MASK`, in their order; h and w are those of the last image
            before it.
        source: file and its member, or name and number of a generated sample.
        facts: plain values for the evaluation.
        regions: named regions of each image, in the order of the images; empty for no names.

    Raises:
        TypeError, ValueError: a field does not fit its description.
    """

    task: str
    messages: tuple[dict[str, Any], ...]
    masks: tuple[np.ndarray, ...] = ()
    source: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    regions: tuple[Regions, ...] = ()

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
                f"masks: expected one for each of {len(sizes)} MASK, got {len(self.masks)}"
            )
        images = sum(part["type"] == "image" for one in self.messages for part in one["content"])
        if self.regions and len(self.regions) != images:
            expected = f"one for each of {images} images, or none"
            raise ValueError(f"regions: expected {expected}, got {len(self.regions)}")
        for number, (mask, size) in enumerate(zip(self.masks, sizes, strict=True)):
            _check_mask(f"masks[{number}]", mask, size)


def message(
    role: str, *content: str | Image.Image | StoredImage | Mapping[str, Any]
) -> dict[str, Any]:
    """Build a message of a conversation from texts, images and masks.

    Args:
        role: "user" or "assistant".
        *content: texts, images and `MASK` in their order.
    """

    def part_of(given: str | Image.Image | StoredImage | Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(given, Mapping):
            return dict(given)
        kind = "text" if isinstance(given, str) else "image"
        return {"type": kind, kind: given}

    return {"role": role, "content": list(map(part_of, content))}


def _sizes_of_masks(messages: tuple[dict[str, Any], ...]) -> Iterator[tuple[int, int]]:
    """Check the messages and yield the height and width that each mask must have."""
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
            kind = _checked_type(name, part)
            if kind == "image":
                size = part["image"].height, part["image"].width
            elif kind == "mask":
                if role != "assistant":
                    raise ValueError(f"{name}: expected masks of the assistant, got one of {role}")
                if size is None:
                    raise ValueError(f"{name}: expected an image before a mask, got none")
                yield size


def _checked_type(name: str, part: Any) -> str:
    """Return the type of a part, "text", "image" or "mask"; raise an error for any other."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if part != MASK and (kind not in ("text", "image") or set(part) != {"type", kind}):
        raise ValueError(f"{name}: expected a part of type text, image or mask, got {part!r}")
    if kind == "text" and not isinstance(part["text"], str):
        raise TypeError(f"{name}: expected a str as text, got {part['text']!r}")
    if kind == "image":
        image = part["image"]
        if isinstance(image, StoredImage):
            return kind
        if not isinstance(image, Image.Image):
            raise TypeError(f"{name}: expected a PIL image, got {image!r}")
        if image.mode != "RGB":
            raise ValueError(f"{name}: expected an image of mode RGB, got {image.mode}")
    return kind


def _check_mask(name: str, mask: np.ndarray, size: tuple[int, int]) -> None:
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"{name}: expected a numpy array, got {mask!r}")
    if mask.dtype != bool or mask.shape != size:
        raise ValueError(f"{name}: expected bool of shape {size}, got {mask.dtype} {mask.shape}")


def images_of(sample: Conversation) -> list[Image.Image | StoredImage]:
    """Return all images of a conversation, in order.

    Raises:
        TypeError: the sample is a captioned image, which is no conversation.
    """
    if not isinstance(sample, Conversation):
        expected = "conversations, which the option pairs makes of captioned images"
        raise TypeError(f"data: expected {expected}, got {type(sample).__name__}")
    parts = (part for message in sample.messages for part in message["content"])
    return [part["image"] for part in parts if part["type"] == "image"]
