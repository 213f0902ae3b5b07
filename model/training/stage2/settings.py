"""Settings of stages 2 and 3, which train the language model on visual tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from setokim.evaluation.settings import GenerationSettings
from setokim.training.base_settings import Settings, check_weights
from setokim.training.stage2.losses import InstructLossSettings

# The projectors and the heads are trained in any case.
TRAINED_PARTS = ("llm", "tokenizer", "detokenizer")


@dataclass(frozen=True)
class LoraSettings:
    """Settings of LoRA: low-rank updates of the language model, trained instead of its weights.

    Attributes:
        rank: rank of each update, at least 1.
        alpha: scale of the updates; each is multiplied by alpha / rank.
        dropout: dropout probability of the inputs of the updates, in [0, 1).
        targets: names of the linear layers with updates.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora.rank: expected at least 1, got {self.rank}")
        if self.alpha <= 0:
            raise ValueError(f"lora.alpha: expected a number above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout: expected a number in [0, 1), got {self.dropout}")
        if not self.targets:
            raise ValueError("lora.targets: expected at least one name, got none")


@dataclass(frozen=True)
class InstructSettings(Settings):
    """Settings of a run of stage 2 or 3.

    Attributes:
        model: fields of `SetokimConfig`; none with `start`.
        start: folder of a trained model to continue from, instead of `llm` and `setok`.
        llm: name or folder of a Hugging Face causal language model, or the fields of a
            configuration with `model_type`, for random weights.
        setok: folder of the model of stage 1.
        losses: weights of the losses.
        lora: settings of low-rank updates of the language model; None for none.
        train: parts to train, among "llm", "tokenizer" and "detokenizer"; the projectors and heads
            are trained in any case.
        condition_dropout: probability of dropping the condition of an image to generate
            (classifier-free guidance).
        diffusion_repeats: number of noise samples for each visual token.
        diffusion_noisiest: number of these at the last timestep, where only noise is left; they
            train the language model to predict the token.
        max_length: maximum number of tokens in a row, visual ones included; the rest is cut off.
        pack: flag to join conversations without images to rows of `max_length`; this saves padding,
            and long texts are split instead of cut off.
        keep_tokens: maximum number of images whose visual tokens each process caches; it speeds up
            data with repeated images and needs a frozen tokenizer. Images that are stored as tokens
            (data of the kind "tokens") need no cache.
        activation_checkpointing: flag to recompute activations in the backward pass, which saves
            memory.
        generation: options of generation in evaluations and image sheets.
    """

    stage: int = 2
    model: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    llm: str | dict[str, Any] | None = None
    setok: str | None = None
    losses: InstructLossSettings = field(default_factory=InstructLossSettings)
    lora: LoraSettings | None = None
    train: tuple[str, ...] = ()
    condition_dropout: float = 0.1
    diffusion_repeats: int = 4
    diffusion_noisiest: int = 0
    max_length: int = 2048
    pack: bool = False
    keep_tokens: int = 0
    activation_checkpointing: bool = False
    generation: GenerationSettings = field(default_factory=GenerationSettings)

    def __post_init__(self):
        if self.stage not in (2, 3):
            raise ValueError(f"stage: expected 2 or 3, got {self.stage!r}")
        super().__post_init__()
        check_weights(self.losses)
        self._check_origin()
        for part in self.train:
            if part not in TRAINED_PARTS:
                expected = f"parts among {', '.join(TRAINED_PARTS)}"
                raise ValueError(f"train: expected {expected}, got {part!r}")
        if "detokenizer" in self.train and not self.losses.reconstruction:
            # No other loss trains it.
            raise ValueError("losses.reconstruction: expected more than 0 to train the detokenizer")
        if self.losses.reconstruction and not {"tokenizer", "detokenizer"} & set(self.train):
            expected = "0 without training the tokenizer or the detokenizer"
            raise ValueError(
                f"losses.reconstruction: expected {expected}, got {self.losses.reconstruction}"
            )
        if not 0 <= self.condition_dropout <= 1:
            got = self.condition_dropout
            raise ValueError(f"condition_dropout: expected a number in [0, 1], got {got}")
        for name in ("diffusion_repeats", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        repeats, noisiest = self.diffusion_repeats, self.diffusion_noisiest
        if not 0 <= noisiest <= repeats:
            raise ValueError(f"diffusion_noisiest: expected 0 to {repeats}, got {noisiest}")

        self._check_keep_tokens()

    def _check_keep_tokens(self) -> None:
        if self.keep_tokens < 0:
            raise ValueError(f"keep_tokens: expected at least 0, got {self.keep_tokens}")
        if self.keep_tokens and "tokenizer" in self.train:
            raise ValueError(
                f"keep_tokens: expected 0 with a trained tokenizer, got {self.keep_tokens}"
            )
        if self.keep_tokens and self.parallel == "fsdp":
            # A process with all tokens in its cache would not join the others' gathering.
            raise ValueError(f"keep_tokens: expected 0 with fsdp, got {self.keep_tokens}")

    def _check_origin(self) -> None:
        for name in ("llm", "setok"):
            value = getattr(self, name)
            if self.start is None and value is None:
                raise ValueError(f"{name}: expected a value without start, got None")
            if self.start is not None and value is not None:
                raise ValueError(f"{name}: expected None with start={self.start!r}, got {value!r}")

    @property
    def leaves_parameters_unused(self) -> bool:
        """Flag of batches that may lack images or images to generate."""
        return True
