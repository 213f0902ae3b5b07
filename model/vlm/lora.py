"""Low-rank adapters of the language model, by peft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

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


_Model = TypeVar("_Model", bound="LoraMixin")


class LoraMixin:
    """Methods of `SetokimModel` that add and merge the adapters of its language model."""

    llm: Any
    config: Any

    def add_lora(self, lora: dict[str, Any]) -> None:
        """Freeze the language model and add low-rank adapters to it.

        Args:
            lora: rank, alpha, dropout and targets of the adapters, as in `SetokimConfig`.

        Raises:
            MissingExtraError: peft is not installed.
            ValueError: the model has adapters already, or no layer has one of the names.
        """
        if self.config.lora is not None:
            raise ValueError(f"lora: expected a model without adapters, got {self.config.lora}")
        self.llm = add_lora(self.llm, **lora)
        self.config.lora = lora

    def merge_lora(self: _Model) -> _Model:
        """Merge the adapters into the weights of the language model; return this model.

        Raises:
            ValueError: the model has no adapters.
        """
        if self.config.lora is None:
            raise ValueError("lora: expected a model with adapters, got one without adapters")
        self.llm = self.llm.merge_and_unload()
        self.config.lora = None
        return self
