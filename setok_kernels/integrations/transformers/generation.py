"""Lengths and results of `generate` for a prompt that is shorter than the caller's."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def lengths_of_shorter(model: nn.Module, inputs: Mapping[str, Any], dropped: int) -> dict[str, Any]:
    """Return `max_length` and `min_length`, which count the prompt, for the shortened prompt.

    Args:
        model: model that generates, with its `generation_config`.
        inputs: arguments of `generate` by name.
        dropped: number of tokens by which the prompt is shorter.
    """
    given = inputs.get("generation_config")
    lengths: dict[str, Any] = {}
    if dropped == 0:
        return lengths
    for name in ("max_length", "min_length"):
        value = inputs.get(name)
        if value is None:
            value = getattr(given, name, None)
        if value is None:
            value = getattr(model.generation_config, name, None)
        if value:
            lengths[name] = max(value - dropped, 0)
    return lengths


def with_prompt(result: Any, ids: Tensor, length: int) -> Any:
    """Put the caller's prompt in front of the new tokens, in place of the shortened one.

    Args:
        result: output of `generate`: sequences, or an output with `sequences`.
        ids: (B, L) prompts.
        length: length of the shortened prompts.
    """
    if length == ids.shape[1]:
        return result
    sequences = result if isinstance(result, Tensor) else result.sequences
    copies = sequences.shape[0] // ids.shape[0]
    prompt = ids.to(sequences.device).repeat_interleave(copies, 0)
    full = torch.cat([prompt, sequences[:, length:]], 1)
    if isinstance(result, Tensor):
        return full
    result.sequences = full
    return result
