"""Questions of a data set to SeTokim, and its answers in a form that can be kept and judged."""

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
from setokim.training.stage2.settings import GenerationSettings
from setokim.vlm.generation import Answer
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor

# Together, whatever else there is: what a row becomes differs by rounding from batch to batch.
AT_ONCE = 64
# The part of questions that are asked without their picture.
BLIND = "vqa-blind"
_MASK_SIZE = (64, 64)

Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Asked:
    """A question, by itself.

    Attributes:
        part: its task, or `BLIND`.
        number: of its sample in the data set.
        turn: number of the question among those of the sample.
        source: of the sample.
        facts: of the sample.
        prompt: what the model is given.
        target: (h, w) bool, the mask that is wanted; None for none.
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
    """A question and what the model gave.

    Attributes:
        asked: the question.
        said: words, without special tokens.
        drawn: the first picture that was drawn, or the file that it is in; None for none.
        mask: (h, w) bool, the first one; None for none.
    """

    asked: Asked
    said: str
    drawn: Image.Image | Path | None = None
    mask: np.ndarray | None = None

    @property
    def picture(self) -> Image.Image | None:
        """The first picture that was drawn, read anew if it is in a file; None for none."""
        return load_image(self.drawn) if isinstance(self.drawn, Path) else self.drawn


def questions_of(number: int, sample: Conversation, blind: bool = False) -> list[Asked]:
    """The questions of a sample, each by itself with the picture of the first.

    Args:
        number: of the sample.
        sample: with one turn or several.
        blind: ask those of "vqa" once more without the picture.
    """
    picture = [part for part in sample.messages[0]["content"] if part["type"] == "image"]
    masks = iter(sample.masks)
    found = []
    for turn, one in enumerate(sample.messages[::2]):
        texts = [part for part in one["content"] if part["type"] == "text"]
        target = next(masks) if sample.task == "segment" else None
        known = (number, turn, sample.source, sample.facts)
        prompts = {sample.task: [{"role": "user", "content": picture + texts}]}
        if blind and sample.task == "vqa":
            prompts[BLIND] = [message("user", *(part["text"] for part in texts))]
        found += [Asked(part, *known, prompt, target) for part, prompt in prompts.items()]
    return found


def batches_of(asked: Iterable[Asked]) -> Iterator[tuple[int, list[Asked]]]:
    """Batches of one part and one size of masks, as soon as they are full, the rest at the end.

    Args:
        asked: in order.

    Yields:
        How many questions of the part and size came before, and up to `AT_ONCE` questions.
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
    settings: GenerationSettings,
    start: int = 0,
) -> list[Answered]:
    """Answers to a batch of `batches_of`.

    Args:
        model: in the mode that it is in.
        processor: of the model.
        batch: at least one question.
        settings: how to generate.
        start: number of the first; the noise of question i depends on `start` + i alone.
    """
    target = batch[0].target
    size = _MASK_SIZE if target is None else target.shape
    found = answers(model, processor, [one.prompt for one in batch], settings, size, start)
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
    settings: GenerationSettings,
    mask_size: tuple[int, int] = _MASK_SIZE,
    start: int = 0,
) -> list[Answer]:
    """What the model says to each prompt, all at once.

    Args:
        model: in the mode that it is in.
        processor: of the model.
        prompts: conversations that end with the user.
        settings: how to generate.
        mask_size: height and width of the masks.
        start: number of the first prompt; the noise of prompt i depends on `start` + i alone.
    """
    inputs = processor(prompts, add_generation_prompt=True, padding_side="left")
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    return model.generate(
        **inputs,
        max_new_tokens=settings.max_new_tokens,
        guidance=settings.guidance,
        sampling_steps=settings.sampling_steps,
        image_temperature=settings.image_temperature,
        mask_size=mask_size,
        generators=[torch.Generator().manual_seed(start + i) for i in range(len(prompts))],
    )
