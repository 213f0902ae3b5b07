"""Low-rank adapters in the language model, by peft."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from setok_kernels.extras import from_extra


def add_lora(
    llm: PreTrainedModel,
    rank: int,
    targets: Sequence[str],
    alpha: float | None = None,
    dropout: float = 0.0,
) -> nn.Module:
    """Freezes a language model and puts adapters into it.

    Args:
        llm: which is changed.
        rank: of the adapters.
        targets: names of the linear layers, such as "q_proj".
        alpha: the adapters' weight times `rank`; None for twice the rank.
        dropout: of the adapters' input.

    Returns:
        The `PeftModel` around it.

    Raises:
        MissingExtraError: peft is not installed.
        ValueError: there are no such layers.
    """
    # Imported where it is needed: peft takes seconds, and most runs have no adapters.
    with from_extra("lora"):
        from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(llm, config)


def base_of(llm: nn.Module) -> PreTrainedModel:
    """The model of transformers, with adapters around it or without."""
    return llm.get_base_model() if hasattr(llm, "get_base_model") else llm
