"""Prompts of a data set, and the responses of a SeTokim model to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from setokim.data import Conversation
from setokim.data.conversations import message
from setokim.data.image_processing import load_image, to_image
from setokim.vlm.generation import Answer
from setokim.vlm.generation_config import SetokimGenerationConfig
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor

# Part of the prompts of "vqa" without their image.
BLIND = "vqa-blind"
_MASK_SIZE = (64, 64)

Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Prompt:
    """One question of a sample as messages to the model, with the facts for its metrics.

    Attributes:
        part: task of the question, or `BLIND`.
        number: index of the sample in the data set.
        turn: index of the question within the sample.
        source: origin of the sample.
        facts: facts of the sample.
        messages: conversation that ends with the question.
        target: (h, w) bool, the reference mask; None for none.
    """

    part: str
    number: int
    turn: int
    source: str
    facts: dict[str, Any]
    messages: Messages
    target: np.ndarray | None = None

    @property
    def text(self) -> str:
        """Texts of the messages, one below the other."""
        parts = (part for message in self.messages for part in message["content"])
        return "\n".join(part["text"] for part in parts if part["type"] == "text")


@dataclass(frozen=True, eq=False)
class Response:
    """Response of the model to a prompt.

    Attributes:
        prompt: prompt of the response.
        text: text without special tokens.
        generated: first generated image, or path of its file; None for none.
        mask: (h, w) bool, first mask; None for none.
    """

    prompt: Prompt
    text: str
    generated: Image.Image | Path | None = None
    mask: np.ndarray | None = None

    @property
    def image(self) -> Image.Image | None:
        """First generated image, read from its file each time; None for none."""
        return load_image(self.generated) if isinstance(self.generated, Path) else self.generated


def prompts_of(number: int, sample: Conversation, blind: bool = False) -> list[Prompt]:
    """Return the prompts of a sample, each with the image of the first turn.

    Args:
        number: index of the sample.
        sample: conversation of at least one turn.
        blind: inclusion of a second prompt, without the image, for each question of "vqa".
    """
    image = [part for part in sample.messages[0]["content"] if part["type"] == "image"]
    masks = iter(sample.masks)
    found = []
    for turn, one in enumerate(sample.messages[::2]):
        texts = [part for part in one["content"] if part["type"] == "text"]
        target = next(masks) if sample.task == "segment" else None
        known = (number, turn, sample.source, sample.facts)
        parts = {sample.task: [{"role": "user", "content": image + texts}]}
        if blind and sample.task == "vqa":
            parts[BLIND] = [message("user", *(part["text"] for part in texts))]
        found += [Prompt(part, *known, messages, target) for part, messages in parts.items()]
    return found


def in_order(rows: Iterable[Response]) -> list[Response]:
    """Return responses in the order of the data set, whatever batches they were answered in."""
    return sorted(rows, key=lambda row: (row.prompt.number, row.prompt.turn, row.prompt.part))


def generate_responses(
    model: SetokimModel,
    processor: SetokimProcessor,
    batch: Sequence[Prompt],
    config: SetokimGenerationConfig,
    indices: Sequence[int] | None = None,
) -> list[Response]:
    """Generate the responses to a batch of `batches_of`.

    Args:
        model: model, whose training or evaluation mode is kept.
        processor: tokenizer and image processor of the model.
        batch: prompts, at least one.
        config: options of generation.
        indices: index of each prompt, on which alone its noise depends; None for 0, 1, …
    """
    target = batch[0].target
    size = _MASK_SIZE if target is None else target.shape
    chats = [one.messages for one in batch]
    found = generate_answers(model, processor, chats, config, size, indices)
    return [
        Response(
            one,
            processor.decode(answer.ids),
            to_image(answer.images[0]) if answer.images else None,
            (answer.masks[0] > 0).cpu().numpy() if answer.masks else None,
        )
        for one, answer in zip(batch, found, strict=True)
    ]


def generate_answers(
    model: SetokimModel,
    processor: SetokimProcessor,
    prompts: Sequence[Messages],
    config: SetokimGenerationConfig,
    mask_size: tuple[int, int] = _MASK_SIZE,
    indices: Sequence[int] | None = None,
) -> list[Answer]:
    """Generate the answers to conversations as one batch.

    Args:
        model: model, whose training or evaluation mode is kept.
        processor: tokenizer and image processor of the model.
        prompts: conversations that end with a message of the user.
        config: options of generation.
        mask_size: height and width of the masks.
        indices: index of each prompt, on which alone its noise depends; None for 0, 1, …
    """
    indices = range(len(prompts)) if indices is None else indices
    inputs = processor(prompts, add_generation_prompt=True, padding_side="left")
    inputs = {n: v.to(model.device) if isinstance(v, Tensor) else v for n, v in inputs.items()}
    return model.generate(
        **inputs,
        generation_config=config,
        mask_size=mask_size,
        generators=[torch.Generator().manual_seed(index) for index in indices],
    )
