"""Settings of stage 1: training the tokenizer and the detokenizer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from setokim.training.base_settings import OptimizerSettings, Settings, check_weights
from setokim.training.stage1.losses import LossSettings


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
