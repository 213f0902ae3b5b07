"""Settings that the runs of all stages have."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from setokim.data.settings import DataSettings
from setokim.utils.parsing import to_plain


@dataclass(frozen=True)
class OptimizerSettings:
    """An optimizer with warm-up and a cosine.

    Attributes:
        lr: at the end of the warm-up.
        weight_decay: of matrices; vectors have none.
        betas: of AdamW.
        warmup: steps of linear warm-up.
        least: factor of `lr` at the last step.
        clip: largest norm of the gradient.
        visual_lr: in place of `lr` for the visual parts, in stages 2 and 3; None for `lr`.
        kind: "adamw", or "muon" for the matrices of hidden layers, with AdamW for the rest; `lr`
            and `weight_decay` are of both. In stages 2 and 3 the hidden layers are those of the
            language model and the projector into it.
    """

    lr: float = 5e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: int = 10_000
    least: float = 0.0
    clip: float = 1.0
    visual_lr: float | None = None
    kind: str = "adamw"

    def __post_init__(self):
        if self.kind not in ("adamw", "muon"):
            raise ValueError(f"optimizer.kind: expected adamw or muon, got {self.kind!r}")


@dataclass(frozen=True)
class EverySettings:
    """Steps between two of each; 0 for never.

    Attributes:
        log: lines for the tracker and the terminal.
        checkpoint: states to resume from.
        evaluation: held-out metrics.
        pictures: reconstructions and cluster maps.
    """

    log: int = 10
    checkpoint: int = 1000
    evaluation: int = 1000
    pictures: int = 1000


@dataclass(frozen=True)
class Settings:
    """What the runs of all stages have.

    Attributes:
        stage: of the paper's training; 1 trains tokenizer and detokenizer, 2 and 3 the language
            model that reads and draws their tokens.
        seed: of the weights and of the order of the samples.
        steps: of the optimizer.
        batch_size: samples of one process at once.
        accumulation: batches for one step.
        precision: "no" (float32) or "bf16".
        parallel: "ddp", every process has all weights; or "fsdp", each has a share of them.
        data: for training.
        held_out: for evaluation.
        optimizer: of the model.
        every: how often things happen.
        ema: decay of the averaged weights that are evaluated and saved; 0 for none.
        workers: processes that load data; 0 for none.
        keep: checkpoints to keep.
        trust_remote_code: run the Python code that Hugging Face folders named here bring.
        imports: Python modules to import first, by name or as paths of .py files: they register
            losses, encoders, token groupings and data sets of the user's own.
    """

    stage: int = 1
    seed: int = 0
    steps: int = 100_000
    batch_size: int = 16
    accumulation: int = 8
    precision: str = "bf16"
    parallel: str = "ddp"
    data: DataSettings = field(default_factory=DataSettings)
    held_out: DataSettings = field(default_factory=lambda: DataSettings(samples=256))
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    every: EverySettings = field(default_factory=EverySettings)
    ema: float = 0.999
    workers: int = 2
    keep: int = 2
    trust_remote_code: bool = False
    imports: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulation", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("seed", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        for name, known in (("precision", ("no", "bf16")), ("parallel", ("ddp", "fsdp"))):
            if getattr(self, name) not in known:
                expected = " or ".join(known)
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema: expected a number in [0, 1), got {self.ema}")
        self.check_warmup("optimizer", self.optimizer)
        if self.optimizer.kind == "muon" and self.parallel == "fsdp":
            # A step needs whole matrices, and each process has some rows of each.
            raise ValueError("optimizer.kind: expected adamw with parallel fsdp, got 'muon'")

    def check_warmup(self, name: str, optimizer: OptimizerSettings) -> None:
        """The warm-up of an optimizer of that name ends within the run.

        Raises:
            ValueError: it does not.
        """
        if not 0 <= optimizer.warmup <= self.steps:
            expected = f"a number from 0 to steps={self.steps}"
            raise ValueError(f"{name}.warmup: expected {expected}, got {optimizer.warmup}")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as YAML and JSON take them."""
        return to_plain(self)

    @property
    def leaves_parameters_unused(self) -> bool:
        """Whether a parameter that learns may get no gradient in a step."""
        return False


def check_weights(losses: Any, besides: Sequence[str] = ()) -> None:
    """Raise an error unless no weight is negative and at least one is above 0.

    Args:
        losses: dataclass of weights; a field may hold weights by name.
        besides: names of its fields that are not weights.

    Raises:
        ValueError: a weight is negative, or all are 0.
    """
    weights = {n: w for n, w in dataclasses.asdict(losses).items() if n not in besides}
    weights |= {f"extra.{n}": w for n, w in weights.pop("extra", {}).items()}
    for name, weight in weights.items():
        if not isinstance(weight, (int, float)) or not weight >= 0:
            raise ValueError(f"losses.{name}: expected at least 0, got {weight!r}")
    if not any(weights.values()):
        raise ValueError("losses: expected at least one weight above 0, got none")
