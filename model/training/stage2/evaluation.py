"""Metrics of stages 2 and 3 on held-out conversations."""

from __future__ import annotations

import math
from collections.abc import Iterator

from setokim.data import Dataset
from setokim.evaluation.prompting import Prompt, batches_of, generate_responses, prompts_of
from setokim.evaluation.settings import GenerationSettings
from setokim.evaluation.shapes_world import shapes_metrics
from setokim.training.stage2.held_out_losses import held_out_losses
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor

# Facts that `ShapesTasks` alone gives: the scene, and the kinds of the questions of a text task.
_SHAPES_FACTS = {"scene", "kinds"}


def evaluate(
    model: SetokimModel,
    processor: SetokimProcessor,
    held_out: Dataset,
    settings: GenerationSettings,
    batch_size: int = 16,
    max_length: int = 2048,
) -> dict[str, float | None]:
    """Compute the losses of all held-out conversations, and the metrics of ShapesWorld's.

    Every turn of a conversation of ShapesWorld is asked by itself. Other data sets have no facts to
    judge answers by here: `setok eval` has their benchmarks.

    Args:
        model: model in the mode to measure.
        processor: tokenizer and image processor of the model.
        held_out: conversations of any data set.
        settings: options of generation, and the number of conversations to ask.
        batch_size: conversations of one forward pass for the losses.
        max_length: longest row of such a pass with its visual tokens.

    Returns:
        Results of `held_out_losses` and `shapes_metrics`; None for a value that is not finite.
    """
    number = len(held_out) if settings.samples is None else min(settings.samples, len(held_out))
    figures = shapes_metrics(
        row
        for start, batch in batches_of(_questions(held_out, number))
        for row in generate_responses(model, processor, batch, settings.config(), start)
    )
    finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    return finite | held_out_losses(model, processor, held_out, batch_size, max_length)


def _questions(held_out: Dataset, number: int) -> Iterator[Prompt]:
    """Yield the questions of ShapesWorld among the first conversations."""
    for index in range(number):
        sample = held_out[index]
        if not _SHAPES_FACTS.isdisjoint(sample.facts):
            yield from prompts_of(index, sample, blind=True)
