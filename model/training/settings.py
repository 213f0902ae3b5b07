"""Settings of a training run: a YAML file, and `key=value` on top of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from setokim.training.base_settings import (
    DataSettings,
    EverySettings,
    OptimizerSettings,
    Settings,
    check_weights,
)
from setokim.training.parsing import from_plain
from setokim.training.stage2.settings import InstructSettings

__all__ = [
    "DataSettings",
    "EverySettings",
    "InstructSettings",
    "LossSettings",
    "OptimizerSettings",
    "Settings",
    "Stage1Settings",
    "load_settings",
]


@dataclass(frozen=True)
class LossSettings:
    """Weights of the losses of stage 1; one of weight 0 is not computed.

    Attributes:
        l1: mean absolute difference of pixels.
        l2: mean squared difference of pixels.
        perceptual: difference of features of a frozen network.
        perceptual_network: "pyramid" (built in), "encoder" (the model's own, frozen), or a
            safetensors file of LPIPS.
        adversarial: of the patch discriminator, on top of the adaptive weight.
        adversarial_start: first step at which it counts.
        contrastive: between visual tokens and concepts of the text.
    """

    l1: float = 1.0
    l2: float = 1.0
    perceptual: float = 1.0
    perceptual_network: str = "pyramid"
    adversarial: float = 0.5
    adversarial_start: int = 0
    contrastive: float = 1.0


@dataclass(frozen=True)
class Stage1Settings(Settings):
    """A run of stage 1.

    Attributes:
        model: fields of `SetokConfig`; `encoder` may also name a Hugging Face model.
        text_encoder: "concepts" (built in), or the name or folder of a Hugging Face text encoder.
        discriminator_width: channels of the patch discriminator's first layer.
        discriminator: optimizer of the discriminator.
        losses: their weights.
        token_noise: most noise on the tokens that are drawn again, in their units: a model that
            makes tokens never makes them exactly. Each picture has its own share of it.
    """

    model: dict[str, Any] = field(default_factory=dict)
    text_encoder: str = "concepts"
    discriminator_width: int = 64
    discriminator: OptimizerSettings = field(default_factory=OptimizerSettings)
    losses: LossSettings = field(default_factory=LossSettings)
    token_noise: float = 0.0

    def __post_init__(self):
        if self.stage != 1:
            raise ValueError(f"stage: expected 1, got {self.stage!r}")
        super().__post_init__()
        for name in ("optimizer", "discriminator"):
            rate = getattr(self, name).visual_lr
            if rate is not None:
                raise ValueError(f"{name}.visual_lr: expected none in stage 1, got {rate}")
        check_weights(self.losses, besides=("perceptual_network", "adversarial_start"))
        if not 0 <= self.token_noise < math.inf:
            expected = "a finite number of at least 0"
            raise ValueError(f"token_noise: expected {expected}, got {self.token_noise}")
        self._check_adversary()

    def _check_adversary(self) -> None:
        """What would otherwise come to light in the middle of a run."""
        losses = self.losses
        if losses.adversarial_start < 0:
            got = losses.adversarial_start
            raise ValueError(f"losses.adversarial_start: expected at least 0, got {got}")
        if losses.adversarial:
            self.check_warmup("discriminator", self.discriminator)
            if self.parallel == "fsdp":
                expected = "ddp with the adversary, losses.adversarial"
                raise ValueError(f"parallel: expected {expected}, got fsdp")
        drawing = losses.l1 or losses.l2 or losses.perceptual
        if losses.adversarial and losses.adversarial_start and not drawing:
            # Nothing would train the detokenizer until then.
            expected = "0 with no other loss of the pictures"
            got = losses.adversarial_start
            raise ValueError(f"losses.adversarial_start: expected {expected}, got {got}")

    @property
    def leaves_parameters_unused(self) -> bool:
        """Layers of a trained encoder above the one that is taken get no gradient."""
        return bool(self.model.get("encoder_trainable"))


_KINDS = {1: Stage1Settings, 2: InstructSettings, 3: InstructSettings}


def load_settings(path: Path, overrides: Sequence[str] = ()) -> Stage1Settings | InstructSettings:
    """Reads a YAML file.

    Args:
        path: of the file.
        overrides: "key=value", with dots for nested keys; values are YAML.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no YAML, a key is none of this stage, or a value does not fit.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML, got {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys and values, got {values!r}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"override: expected key=value, got {override!r}")
        *parents, last = key.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ValueError(f"override: {key!r} goes through {parent!r}, which is no group")
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{key}: expected YAML, got {text!r}") from error
    stage = values.get("stage", 1)
    if not isinstance(stage, int) or stage not in _KINDS:
        raise ValueError(f"stage: expected 1, 2 or 3, got {stage!r}")
    return from_plain(_KINDS[stage], values)
