"""Batches of prompts of similar length, which have little padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from setokim.evaluation.prompting import Prompt

# Constant, since the rounding of a row depends on the size of its batch.
BATCH_SIZE = 64
# Batches of prompts that wait with their images: 512 decoded images of 640 x 480 are 470 MB.
WINDOW = 8
# Number of characters that take the room of an image, about 64 tokens.
_IMAGE = 256


class _Waiting(NamedTuple):
    arrival: int
    index: int
    length: int
    prompt: Prompt


def batches_of(prompts: Iterable[Prompt]) -> Iterator[tuple[list[int], list[Prompt]]]:
    """Yield batches of one part and one mask size, of prompts of similar length.

    Up to `WINDOW` · `BATCH_SIZE` prompts wait. Then the largest group of one part and size loses
    the batch with the least padding. If no group fills a batch, that of the oldest prompt is
    yielded as it is. A batch depends on the prompts read before it alone.

    Args:
        prompts: prompts in order.

    Yields:
        Up to `BATCH_SIZE` prompts in their order, and for each the number of earlier prompts of
        its part and size.
    """
    groups: dict[Any, list[_Waiting]] = {}
    counts: dict[Any, int] = {}
    number = 0
    for arrival, one in enumerate(prompts):
        key = one.part, None if one.target is None else one.target.shape
        index = counts.get(key, 0)
        counts[key] = index + 1
        groups.setdefault(key, []).append(_Waiting(arrival, index, _length(one), one))
        number += 1
        if number == WINDOW * BATCH_SIZE:
            key = _next_group(groups)
            batch, groups[key] = _cut(groups[key])
            if not groups[key]:
                del groups[key]
            number -= len(batch)
            yield _parts(batch)
    for group in groups.values():
        ordered = _by_length(group)
        for start in range(0, len(ordered), BATCH_SIZE):
            yield _parts(sorted(ordered[start : start + BATCH_SIZE]))


def _next_group(groups: dict[Any, list[_Waiting]]) -> Any:
    largest = max(groups, key=lambda key: len(groups[key]))
    if len(groups[largest]) >= BATCH_SIZE:
        return largest
    return min(groups, key=lambda key: groups[key][0].arrival)


def _cut(group: list[_Waiting]) -> tuple[list[_Waiting], list[_Waiting]]:
    """Split a group into the batch with the least padding and the rest, both in order."""
    ordered = _by_length(group)

    def padding(start: int) -> int:
        *shorter, longest = (one.length for one in ordered[start : start + BATCH_SIZE])
        return sum(longest - length for length in shorter)

    starts = range(0, max(1, len(ordered) - BATCH_SIZE + 1), BATCH_SIZE)
    start = min(starts, key=padding)
    batch = sorted(ordered[start : start + BATCH_SIZE])
    taken = {one.arrival for one in batch}
    return batch, [one for one in group if one.arrival not in taken]


def _by_length(group: list[_Waiting]) -> list[_Waiting]:
    return sorted(group, key=lambda one: (one.length, one.arrival))


def _length(prompt: Prompt) -> int:
    """Return the number of characters; the number of visual tokens is not known yet."""
    parts = (part for message in prompt.messages for part in message["content"])
    return len(prompt.text) + _IMAGE * sum(part["type"] == "image" for part in parts)


def _parts(batch: list[_Waiting]) -> tuple[list[int], list[Prompt]]:
    return [one.index for one in batch], [one.prompt for one in batch]
