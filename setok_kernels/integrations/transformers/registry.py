"""Registry of model families: where each keeps its placeholders, features and positions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from setok_kernels.integrations.transformers.clustering import Encoded
from setok_kernels.integrations.transformers.positions import sequential_positions
from setok_kernels.integrations.transformers.prompt import Shortening

# Inputs with one entry per token of the prompt, and what padding has there. The padding of
# input_ids depends on the model.
SEQUENCE_INPUTS = {
    "input_ids": 0,
    "attention_mask": 0,
    "labels": -100,
    "position_ids": 0,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
}


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One kind of visual input of a family.

    Attributes:
        placeholder: attribute of the model's config: the id of the placeholder token.
        pixels: argument with the pixels.
        function: method of the base model that encodes them. Its output has `pooler_output`, a
            list of (n, D) or a tensor (items, n, D), in the order of the placeholders.
        encoder: path in the base model of the module that reads one feature vector per
            placeholder from the encoder, such as a projector. The first argument of its first call
            is what `features="encoder"` clusters.
        encode: function (base, modality, inputs) -> `Encoded`; None for `encode_items`, where each
            item of the output is a group.
        key: name of the modality in `mm_encoder_outputs`.
    """

    placeholder: str
    pixels: str
    function: str
    encoder: str
    encode: Callable[[nn.Module, "Modality", Mapping[str, Any]], Encoded] | None = None
    key: str = "image"


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models of one `config.model_type`.

    Attributes:
        model_type: `model_type` of the models' config.
        modalities: kinds of visual input, in the order in which a prompt is read; none for a
            family with its own `attach`.
        sequence_inputs: inputs with one entry per token of the prompt in their last dimension,
            (B, L) or (k, B, L), and the value of their padding.
        original_positions: function (base, inputs, generating) -> (B, L) or (k, B, L): position
            ids that the untouched model would use, for positions="original".
        compact_positions: function (base, inputs, shortening, generating) -> the position ids of
            the shortened prompt or None (the model counts), for positions="compact". None for
            models that count.
        remember: function (base, shortened inputs): keeps what the model itself would keep of the
            prompt's positions to continue it; None for models that keep nothing.
        attach: function (model, family, options) -> handle with `restore()`, for models without
            prompts, such as encoders; it replaces everything else.
    """

    model_type: str
    modalities: tuple[Modality, ...]
    sequence_inputs: Mapping[str, int] = field(default_factory=lambda: dict(SEQUENCE_INPUTS))
    original_positions: Callable[[nn.Module, Mapping[str, Any], bool], Tensor] = (
        sequential_positions
    )
    compact_positions: (
        Callable[[nn.Module, Mapping[str, Any], Shortening, bool], Tensor | None] | None
    ) = None
    remember: Callable[[nn.Module, Mapping[str, Any]], None] | None = None
    attach: Callable[..., Any] | None = None


_FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Add a family for models of its `model_type`, and return it.

    Raises:
        TypeError: `family` is no `Family`.
        ValueError: the model type is registered already.
    """
    if not isinstance(family, Family):
        raise TypeError(f"family: expected a Family, got {type(family).__name__}")
    if family.model_type in _FAMILIES:
        raise ValueError(
            f"family: expected a model_type that is not registered, got {family.model_type!r}"
        )
    _FAMILIES[family.model_type] = family
    return family


def registered_families() -> dict[str, Family]:
    """Return the families by model type; the dictionary is a copy."""
    return dict(_FAMILIES)


def family_of(model: nn.Module) -> Family:
    """Return the family of a model.

    Raises:
        ValueError: the family is not registered; the message says what to register.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    families = registered_families()
    if model_type not in families:
        raise ValueError(
            f"model: expected model_type {', '.join(sorted(families))}, got {model_type!r} "
            f"({type(model).__name__}); register_family(Family(model_type={model_type!r}, "
            "modalities=(Modality(placeholder=..., pixels=..., function=..., encoder=...),))) "
            "adds one"
        )
    return families[model_type]
