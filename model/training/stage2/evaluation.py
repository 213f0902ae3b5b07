"""Metrics of stages 2 and 3 on held-out conversations."""

from __future__ import annotations

import math
from collections.abc import Iterator

from setokim.data import Conversation, Dataset
from setokim.data.stored_image import StoredImage
from setokim.evaluation.batching import batches_of
from setokim.evaluation.prompting import Prompt, generate_responses, in_order, prompts_of
from setokim.evaluation.settings import GenerationSettings
from setokim.evaluation.shapes_world import shapes_metrics
from setokim.training.stage2.held_out_losses import held_out_losses
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor

# Facts of `ShapesTasks` only: the scene, and the kinds of the questions of a text task.
_SHAPES_FACTS = {"scene", "kinds"}


def evaluate(
    model: SetokimModel,
    processor: SetokimProcessor,
    held_out: Dataset,
    settings: GenerationSettings,
    batch_size: int = 16,
    max_length: int = 2048,
) -> dict[str, float | None]:
    """Compute the losses of all held-out conversations, and the metrics of those of ShapesWorld.

    Each question of a ShapesWorld conversation is answered separately. Conversations of other data
    sets have no facts to score answers with; `setok eval` has their benchmarks. Stored images
    without masks and features cannot be segmented, and are not.

    Args:
        model: model in the mode to measure.
        processor: tokenizer and image processor of the model.
        held_out: conversations of any data set.
        settings: options of generation, and the number of conversations to answer.
        batch_size: number of conversations in a forward pass for the losses.
        max_length: maximum length of a row in such a pass, visual tokens included.

    Returns:
        Metrics of `held_out_losses` and `shapes_metrics` by name; None for one that is not finite,
        which JSON cannot store.
    """
    number = len(held_out) if settings.samples is None else min(settings.samples, len(held_out))
    rows = (
        row
        for indices, batch in batches_of(_questions(held_out, number))
        for row in generate_responses(model, processor, batch, settings.config(), indices)
    )
    metrics = shapes_metrics(in_order(rows))
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return finite | held_out_losses(model, processor, held_out, batch_size, max_length)


def _questions(held_out: Dataset, number: int) -> Iterator[Prompt]:
    """Yield the questions of ShapesWorld among the first conversations."""
    for index in range(number):
        sample = held_out[index]
        if not _SHAPES_FACTS.isdisjoint(sample.facts) and _can_be_answered(sample):
            yield from prompts_of(index, sample, blind=True)


def _can_be_answered(sample: Conversation) -> bool:
    """Return False for a mask of an image whose patches are not stored."""
    parts = (part for message in sample.messages for part in message["content"])
    stored = (p["image"] for p in parts if isinstance(p.get("image"), StoredImage))
    return sample.task != "segment" or all(
        one.features is not None and (one.tokens is None or one.masks is not None) for one in stored
    )
