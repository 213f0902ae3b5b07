"""Asks SeTokim the questions of a data set; its answers can be stored and scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from setokim.data import Conversation
from setokim.data.conversations import message
from setokim.data.image_processing import load_image, to_image
from setokim.vlm.generation import Answer
from setokim.vlm.generation_config import SetokimGenerationConfig
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor

# A constant: the rounding of a row depends on the size of its batch.
AT_ONCE = 64
# The part of questions that are asked without their image.
BLIND = "vqa-blind"
_MASK_SIZE = (64, 64)

Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Asked:
    """A question with its prompt and the facts it is scored by.

    Attributes:
        part: task of the question, or `BLIND`.
        number: index of its sample in the data set.
        turn: index of the question among those of the sample.
        source: origin of the sample.
        facts: facts of the sample.
        prompt: messages the model is given.
        target: (h, w) bool, the reference mask; None for none.
    """

    part: str
    number: int
    turn: int
    source: str
    facts: dict[str, Any]
    prompt: Messages
    target: np.ndarray | None = None

    @property
    def text(self) -> str:
        """The texts of the prompt, one below the other."""
        parts = (part for message in self.prompt for part in message["content"])
        return "\n".join(part["text"] for part in parts if part["type"] == "text")


@dataclass(frozen=True, eq=False)
class Answered:
    """A question and the model's answer.

    Attributes:
        asked: question.
        said: text without special tokens.
        drawn: first generated image, or the file that holds it; None for none.
        mask: (h, w) bool, first mask; None for none.
    """

    asked: Asked
    said: str
    drawn: Image.Image | Path | None = None
    mask: np.ndarray | None = None

    @property
    def picture(self) -> Image.Image | None:
        """First generated image, read from its file each time; None for none."""
        return load_image(self.drawn) if isinstance(self.drawn, Path) else self.drawn


def questions_of(number: int, sample: Conversation, blind: bool = False) -> list[Asked]:
    """Return the questions of a sample, each with the image of the first turn.

    Args:
        number: index of the sample.
        sample: conversation of at least one turn.
        blind: whether the questions of "vqa" come a second time without the image.
    """
    image = [part for part in sample.messages[0]["content"] if part["type"] == "image"]
    masks = iter(sample.masks)
    found = []
    for turn, one in enumerate(sample.messages[::2]):
        texts = [part for part in one["content"] if part["type"] == "text"]
        target = next(masks) if sample.task == "segment" else None
        known = (number, turn, sample.source, sample.facts)
        prompts = {sample.task: [{"role": "user", "content": image + texts}]}
        if blind and sample.task == "vqa":
            prompts[BLIND] = [message("user", *(part["text"] for part in texts))]
        found += [Asked(part, *known, prompt, target) for part, prompt in prompts.items()]
    return found


def batches_of(asked: Iterable[Asked]) -> Iterator[tuple[int, list[Asked]]]:
    """Yield batches of one part and one mask size as soon as they are full, the rest at the end.

    Args:
        asked: questions in order.

    Yields:
        The number of earlier questions of that part and size, and up to `AT_ONCE` questions.
    """
    waiting: dict[tuple, list[Asked]] = {}
    before: dict[tuple, int] = {}

    def take(key: tuple) -> tuple[int, list[Asked]]:
        batch = waiting.pop(key)
        start = before.get(key, 0)
        before[key] = start + len(batch)
        return start, batch

    for one in asked:
        key = one.part, None if one.target is None else one.target.shape
        waiting.setdefault(key, []).append(one)
        if len(waiting[key]) == AT_ONCE:
            yield take(key)
    for key in list(waiting):
        yield take(key)


def ask(
    model: SetokimModel,
    processor: SetokimProcessor,
    batch: Sequence[Asked],
    config: SetokimGenerationConfig,
    start: int = 0,
) -> list[Answered]:
    """Return the answers to a batch of `batches_of`.

    Args:
        model: model, in whichever of training and evaluation mode it is.
        processor: tokenizer and image processor of the model.
        batch: at least one question.
        config: options of generation.
        start: index of the first question; the noise of question i depends on `start` + i alone.
    """
    target = batch[0].target
    size = _MASK_SIZE if target is None else target.shape
    found = answers(model, processor, [one.prompt for one in batch], config, size, start)
    return [
        Answered(
            one,
            processor.decode(answer.ids),
            to_image(answer.images[0]) if answer.images else None,
            (answer.masks[0] > 0).cpu().numpy() if answer.masks else None,
        )
        for one, answer in zip(batch, found, strict=True)
    ]


def answers(
    model: SetokimModel,
    processor: SetokimProcessor,
    prompts: Sequence[Messages],
    config: SetokimGenerationConfig,
    mask_size: tuple[int, int] = _MASK_SIZE,
    start: int = 0,
) -> list[Answer]:
    """Return the model's answers to prompts, generated as one batch.

    Args:
        model: model, in whichever of training and evaluation mode it is.
        processor: tokenizer and image processor of the model.
        prompts: conversations that end with the user.
        config: options of generation.
        mask_size: height and width of the masks.
        start: index of the first prompt; the noise of prompt i depends on `start` + i alone.
    """
    inputs = processor(prompts, add_generation_prompt=True, padding_side="left")
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    return model.generate(
        **inputs,
        generation_config=config,
        mask_size=mask_size,
        generators=[torch.Generator().manual_seed(start + i) for i in range(len(prompts))],
    )
