"""Low-rank adapters of the language model, by peft."""

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
    """Freeze a language model and add low-rank adapters to it.

    Args:
        llm: language model; changed in place.
        rank: rank of the adapters.
        targets: names of the adapted linear layers, such as "q_proj".
        alpha: weight of the adapters times `rank`; None for twice the rank.
        dropout: dropout probability of the adapters' input.

    Returns:
        `PeftModel` around the language model.

    Raises:
        MissingExtraError: peft is not installed.
        ValueError: no layer has one of these names.
    """
    # Imported here: peft takes seconds to import, and most runs have no adapters.
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
    """Return the language model of transformers, unwrapped from its adapters if it has any."""
    return llm.get_base_model() if hasattr(llm, "get_base_model") else llm
