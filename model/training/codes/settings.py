"""Settings of the training of token codes."""

from __future__ import annotations

from dataclasses import dataclass, field

from setokim.training.base_settings import Settings, check_weights


@dataclass(frozen=True)
class CodeLossSettings:
    """Weights of the losses of the codes; one of weight 0 is not computed.

    Attributes:
        l1: weight of the mean absolute difference of pixels.
        l2: weight of the mean squared difference of pixels.
        token: weight of the squared error of decoded tokens.
        kl: weight of the divergence of the codes from the standard normal.
    """

    l1: float = 0.3
    l2: float = 10.0
    token: float = 0.1
    kl: float = 3e-5


@dataclass(frozen=True)
class CodeFitSettings:
    """Training of the codes on tokens alone, before the first step.

    Attributes:
        images: number of images, the first ones of the training data, whose tokens are used.
        steps: number of optimizer steps; the learning rate falls to 0 by a cosine.
        batch_size: number of tokens in a step.
        lr: learning rate at the first step.
        kl: weight of the divergence of the codes beside the squared error of decoded tokens.
    """

    images: int = 2048
    steps: int = 2500
    batch_size: int = 512
    lr: float = 1e-3
    kl: float = 3e-4

    def __post_init__(self):
        for name in ("images", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"fit.{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("lr", "kl"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"fit.{name}: expected at least 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class CodesSettings(Settings):
    """Settings of a run that trains the codes of tokens.

    First the codes learn tokens alone (`fit`). The steps of the run then train codes and
    detokenizer on images, which are reconstructed from samples of the codes. The tokenizer stays
    frozen. `optimizer.visual_lr` is the learning rate of the detokenizer.

    Attributes:
        start: folder of the model of stage 1.
        code_dim: number of channels of a code.
        code_width: hidden width of encoder and decoder.
        block_weights: weights of content, centre, scale and shape in the squared error of a
            token. An error of the centre moves a whole object; one of the content, which may have
            many channels, changes its colour.
        fit: training on tokens alone.
        losses: weights of the losses.
    """

    stage: int | str = "codes"
    start: str | None = None
    code_dim: int = 16
    code_width: int = 256
    block_weights: tuple[float, float, float, float] = (1.0, 4.0, 4.0, 3.0)
    fit: CodeFitSettings = field(default_factory=CodeFitSettings)
    losses: CodeLossSettings = field(default_factory=CodeLossSettings)

    def __post_init__(self):
        if self.stage != "codes":
            raise ValueError(f"stage: expected codes, got {self.stage!r}")
        super().__post_init__()
        if self.start is None:
            raise ValueError("start: expected the folder of a model of stage 1, got None")
        if self.parallel != "ddp":
            # Codes are fitted before the weights are sharded, and called by parts.
            raise ValueError(f"parallel: expected ddp, got {self.parallel}")
        check_weights(self.losses)
        if not all(weight >= 0 for weight in self.block_weights) or not any(self.block_weights):
            expected = "four weights of at least 0, not all 0"
            raise ValueError(f"block_weights: expected {expected}, got {self.block_weights}")
