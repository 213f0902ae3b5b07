"""Edits that follow one another: each begins with the image that the model made before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from PIL import Image

from setokim.evaluation.answer_log import AnswerLog
from setokim.evaluation.prompting import Prompt, Response
from setokim.evaluation.readable import Readable

# Image and turn of a prompt.
_Turn = tuple[Any, int]


def waves(
    prompts: Callable[[], Iterable[Prompt]], dataset: Readable, log: AnswerLog
) -> Iterator[Iterator[Prompt]]:
    """Yield the prompts of each turn; all responses to a wave are in the log before the next one.

    From the second turn on the source image is the one that the model generated last, or that of
    the first turn if it generated none. A turn after one without a response, which could not be
    read, is broken as well.

    Args:
        prompts: function that returns all prompts, with the facts "img_id" and "turn_index".
        dataset: data set of the prompts.
        log: log of the responses.
    """
    last = 1

    def of(turn: int) -> Iterator[Prompt]:
        nonlocal last
        done = {_turn(row.prompt): row for row in log.rows}
        for prompt in prompts():
            last = max(last, prompt.facts["turn_index"])
            if prompt.facts["turn_index"] != turn:
                continue
            before = [(prompt.facts["img_id"], number) for number in range(1, turn)]
            missing = [number for image, number in before if (image, number) not in done]
            if missing:
                reason = f"turn {missing[0]} of its image has no response"
                log.add_broken(prompt.number, prompt.source, reason)
                dataset.broken.add(prompt.number)
                continue
            yield _following(prompt, [done[one] for one in before], dataset)

    turn = 0
    while turn < last:
        turn += 1
        yield of(turn)


def final_turns(rows: Sequence[Response]) -> list[Response]:
    """Return the responses to the last turn of each image, those of the published metrics."""
    last: dict[Any, int] = {}
    for row in rows:
        image, turn = _turn(row.prompt)
        last[image] = max(last.get(image, turn), turn)
    return [row for row in rows if _turn(row.prompt) in last.items()]


def _turn(prompt: Prompt) -> _Turn:
    return prompt.facts["img_id"], prompt.facts["turn_index"]


def _following(prompt: Prompt, before: Sequence[Response], dataset: Readable) -> Prompt:
    """Return a prompt with the image that the responses before it lead to."""
    if not before:
        return prompt
    made = (row.image for row in reversed(before) if row.generated is not None)
    image = next(made, None)
    if image is None:
        image = _image(dataset[before[0].prompt.number].messages[0])
    (asked,) = prompt.messages
    texts = [part for part in asked["content"] if part["type"] != "image"]
    message = asked | {"content": [{"type": "image", "image": image}, *texts]}
    return dataclasses.replace(prompt, messages=[message])


def _image(message: dict[str, Any]) -> Image.Image:
    return next(part["image"] for part in message["content"] if part["type"] == "image")
