"""Cost of an answer with all visual tokens and with reduced ones, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from PIL import Image

from setokim.data.conversations import message
from setokim.evaluation.existing_models import ExistingModel, Generated

SIDES = ("all", "reduced")


class Handle(Protocol):
    """Protocol of a reduction that can be undone."""

    def restore(self) -> None:
        """Undo the reduction."""


def compare_costs(
    model: ExistingModel,
    images: Sequence[Image.Image],
    question: str,
    reduce: Callable[[Any], Handle],
    max_new_tokens: int,
    rounds: int = 3,
) -> dict[str, dict[str, Any]]:
    """Answer a question about images with all visual tokens and with reduced ones.

    Both take turns within each round, so that a change of the machine's speed affects both. One
    round before is not counted. The time of the prefill is that until the first new token: encoder,
    clustering and language model.

    Args:
        model: model, which is as before afterwards.
        images: images before the question.
        question: text of the user's message.
        reduce: function that reduces the visual tokens of a transformers model in place.
        max_new_tokens: max number of tokens of an answer.
        rounds: number of rounds.

    Returns:
        For "all" and for "reduced": visual_tokens, prompt_tokens, new_tokens, cache_bytes (keys and
        values after the prefill), the medians prefill_s and answer_s in seconds with their
        samples, and the answer.

    Raises:
        ValueError: the model cannot be reduced.
    """
    inputs = model.inputs([[message("user", *images, question)]])
    placed = model.count_visual(inputs)
    found: dict[str, dict[str, Any]] = {
        side: {"prefill_samples_s": [], "answer_samples_s": []} for side in SIDES
    }
    for number in range(rounds + 1):
        for side in SIDES:
            handle = reduce(model.model) if side == "reduced" else None
            try:
                prefill, first = _timed(model, inputs, 1)
                answer, whole = _timed(model, inputs, max_new_tokens)
            finally:
                if handle is not None:
                    handle.restore()
            if number:
                found[side]["prefill_samples_s"].append(prefill)
                found[side]["answer_samples_s"].append(answer)
            removed = inputs["input_ids"].shape[1] - first.prompt_tokens
            found[side] |= {
                "visual_tokens": placed - removed,
                "prompt_tokens": first.prompt_tokens,
                "new_tokens": whole.ids.shape[1],
                "cache_bytes": first.cache_bytes,
                "answer": model.decode(whole.ids)[0],
            }
    for values in found.values():
        for name in ("prefill", "answer"):
            values[f"{name}_s"] = statistics.median(values[f"{name}_samples_s"])
    return found


def _timed(
    model: ExistingModel, inputs: dict[str, torch.Tensor], max_new_tokens: int
) -> tuple[float, Generated]:
    """Return the seconds of an answer, and the answer."""
    device = model.model.device
    _wait(device)
    start = time.perf_counter()
    answer = model.generate(inputs, max_new_tokens)
    _wait(device)
    return time.perf_counter() - start, answer


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
