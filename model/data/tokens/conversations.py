"""Conversations as lines of JSON, whose image parts are numbers of images in the same shard."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from setokim.data.conversations import Conversation, Regions
from setokim.data.rle import decode_rle, encode_rle

SUFFIX = ".conversations.jsonl"


def to_plain(sample: Conversation, numbers: Sequence[int]) -> dict[str, Any]:
    """Return a conversation as plain values.

    Args:
        sample: conversation.
        numbers: number in the shard of each image of the conversation, in order.
    """
    number = iter(numbers)
    messages = [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "image": next(number)} if part["type"] == "image" else dict(part)
                for part in message["content"]
            ],
        }
        for message in sample.messages
    ]
    return {
        "task": sample.task,
        "messages": messages,
        "masks": [encode_rle(mask) for mask in sample.masks],
        "source": sample.source,
        "facts": sample.facts,
        "regions": [
            {
                "size": list(one.labels.shape),
                "labels": base64.b64encode(zlib.compress(_small(one.labels).tobytes())).decode(),
                "names": list(one.names),
            }
            for one in sample.regions
        ],
    }


def from_plain(line: dict[str, Any], image_of: Callable[[int], Any]) -> Conversation:
    """Return the conversation of `to_plain`.

    Args:
        line: plain values.
        image_of: function that returns the image of a number.

    Raises:
        KeyError, TypeError, ValueError: the line is damaged.
    """
    messages = []
    for message in line["messages"]:
        content = [
            part | {"image": image_of(part["image"])} if part["type"] == "image" else part
            for part in message["content"]
        ]
        messages.append({"role": message["role"], "content": content})
    regions = [
        Regions(
            np.frombuffer(zlib.decompress(base64.b64decode(one["labels"])), np.int16)
            .reshape(one["size"])
            .astype(np.int64),
            tuple(one["names"]),
        )
        for one in line["regions"]
    ]
    masks = [decode_rle(code) for code in line["masks"]]
    values = {name: line[name] for name in ("task", "source", "facts")}
    fields = values | {"messages": tuple(messages), "masks": tuple(masks)}
    return Conversation(**fields, regions=tuple(regions))


def _small(labels: np.ndarray) -> np.ndarray:
    if labels.max(initial=0) > np.iinfo(np.int16).max:
        raise ValueError(f"regions: expected at most 32767 names, got {labels.max() + 1}")
    return labels.astype("<i2")
