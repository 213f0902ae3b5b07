"""Losses of stages 2 and 3 on held-out conversations of any data set."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from setokim.data import Conversation, Dataset
from setokim.training.stage import to_device
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import IGNORED, SetokimProcessor


@torch.no_grad()
def held_out_losses(
    model: SetokimModel,
    processor: SetokimProcessor,
    held_out: Dataset,
    batch_size: int,
    max_length: int,
) -> dict[str, float | None]:
    """Compute the mean loss of a text token over all conversations and over those of each task.

    All processes call it with the same conversations. It uses no random numbers.

    Args:
        model: model in the mode to measure.
        processor: tokenizer and image processor of the model.
        held_out: conversations of any tasks.
        batch_size: number of conversations in a forward pass.
        max_length: maximum length of a row with its visual tokens; longer ones are cut off, as in
            training.

    Returns:
        `text_loss` in nats, and TASK`_text_loss` for each task of the data. A loss that has no
        tokens or is not finite is None.
    """
    sums: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for samples in _batches(held_out, batch_size):
        inputs = processor([sample.messages for sample in samples])
        inputs = to_device(inputs, model.device)
        output = model(**inputs, max_length=max_length, loss_weights={"text": 1.0})
        number = int((output.spliced.labels[:, 1:] != IGNORED).sum())
        for name in ("", f"{samples[0].task}_"):
            sums[name] = sums.get(name, 0.0) + float(output.losses["text"]) * number
            tokens[name] = tokens.get(name, 0) + number
    means = {name: sums[name] / number if number else math.nan for name, number in tokens.items()}
    return {f"{name}text_loss": _finite(mean) for name, mean in sorted(means.items())}


def _batches(held_out: Dataset, batch_size: int) -> Iterator[list[Conversation]]:
    """Yield batches of one task each once they are full, and the remaining ones at the end."""
    waiting: dict[str, list[Conversation]] = {}
    for index in range(len(held_out)):
        sample = held_out[index]
        batch = waiting.setdefault(sample.task, [])
        batch.append(sample)
        if len(batch) == batch_size:
            yield waiting.pop(sample.task)
    yield from waiting.values()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
