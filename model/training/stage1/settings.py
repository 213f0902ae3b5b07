"""Settings of stage 1, which trains tokenizer and detokenizer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from setokim.training.base_settings import OptimizerSettings, Settings, check_weights
from setokim.training.stage1.losses import LossSettings


@dataclass(frozen=True)
class Stage1Settings(Settings):
    """Settings of a run of stage 1.

    Attributes:
        model: fields of `SetokConfig`; `encoder` may also be the name of a Hugging Face model.
        text_encoder: text encoder of the contrastive loss; "concepts" (built in), or the name or
            folder of a Hugging Face model.
        discriminator_width: number of channels of the discriminator's first layer.
        discriminator: optimizer of the discriminator.
        losses: weights of the losses.
        token_noise: maximum standard deviation of the noise on the tokens of the detokenizer, in
            units of each channel's own. It makes the detokenizer robust to generated tokens. The
            level of each image is uniformly random.
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
        check_weights(
            self.losses, besides=("perceptual_network", "adversarial_start", "phrase_queue")
        )
        if not 0 <= self.token_noise < math.inf:
            expected = "a finite number of at least 0"
            raise ValueError(f"token_noise: expected {expected}, got {self.token_noise}")
        self._check_adversary()

    def _check_adversary(self) -> None:
        """Raise an error for settings of the adversarial training that fail within a run."""
        losses = self.losses
        if losses.adversarial_start < 0:
            got = losses.adversarial_start
            raise ValueError(f"losses.adversarial_start: expected at least 0, got {got}")
        if losses.adversarial:
            self.check_warmup("discriminator", self.discriminator)
            if self.parallel == "fsdp":
                expected = "ddp with losses.adversarial above 0"
                raise ValueError(f"parallel: expected {expected}, got fsdp")
        reconstructs = losses.l1 or losses.l2 or losses.perceptual
        if losses.adversarial and losses.adversarial_start and not reconstructs:
            # The detokenizer would not be trained until then.
            expected = "0 without another loss of the images"
            got = losses.adversarial_start
            raise ValueError(f"losses.adversarial_start: expected {expected}, got {got}")

    @property
    def leaves_parameters_unused(self) -> bool:
        """Flag of a trained encoder, whose layers above the output layer get no gradient."""
        return bool(self.model.get("encoder_trainable"))
