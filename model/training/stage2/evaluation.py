"""Figures of stages 2 and 3, on held-out conversations."""

from __future__ import annotations

from setokim.data import Dataset
from setokim.evaluation.asking import ask, batches_of, questions_of
from setokim.evaluation.shapes_world import shapes_figures
from setokim.training.stage2.settings import GenerationSettings
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor


def evaluate(
    model: SetokimModel,
    processor: SetokimProcessor,
    held_out: Dataset,
    settings: GenerationSettings,
) -> dict[str, float]:
    """Asks every turn of held-out conversations by itself; `shapes_figures` of the answers.

    Args:
        model: in the mode that it is in.
        processor: of the model.
        held_out: conversations with the facts of `ShapesTasks`.
        settings: how to generate, and how many conversations.
    """
    number = len(held_out) if settings.samples is None else min(settings.samples, len(held_out))
    asked = (
        question
        for index in range(number)
        for question in questions_of(index, held_out[index], blind=True)
    )
    return shapes_figures(
        row
        for start, batch in batches_of(asked)
        for row in ask(model, processor, batch, settings.config(), start)
    )
