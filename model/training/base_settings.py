"""Settings common to all stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from setokim.data.settings import DataSettings
from setokim.utils.parsing import to_plain


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of an optimizer and its schedule: linear warm-up, then cosine decay.

    Attributes:
        lr: learning rate at the end of the warm-up.
        weight_decay: weight decay of matrices; vectors, embeddings and norms have none.
        betas: decay rates of AdamW's two moments.
        warmup: number of steps of linear warm-up.
        least: minimum factor of `lr`, reached at the last step, in [0, 1].
        clip: maximum norm of the gradient; larger gradients are scaled down to it.
        visual_lr: learning rate of the visual modules in stages 2 and 3; None for `lr`.
        kind: optimizer; "adamw", or "muon" for the matrices of hidden layers and AdamW for the
            rest. `lr` and `weight_decay` apply to both. In stages 2 and 3 the hidden layers are
            those of the language model and the projector into it.
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
    """Intervals of a run's outputs in steps; 0 turns an output off.

    Attributes:
        log: steps between two entries of the losses on the terminal and in TensorBoard.
        checkpoint: steps between two checkpoints; the last step has one in any case.
        evaluation: steps between two evaluations on the held-out data; one follows the last step.
        pictures: steps between two image sheets of held-out samples; the last step has one too.
    """

    log: int = 10
    checkpoint: int = 1000
    evaluation: int = 1000
    pictures: int = 1000


@dataclass(frozen=True)
class Settings:
    """Settings common to all stages.

    Attributes:
        stage: stage of the training; 1 trains tokenizer and detokenizer, "codes" the codes of
            their tokens, 2 and 3 the language model that reads and generates them.
        seed: random seed of the weights and of the order of the samples.
        steps: number of optimizer steps.
        batch_size: number of samples in a batch of one process.
        accumulation: number of batches whose gradients are averaged for one step.
        precision: number format of the computation; "no" (float32) or "bf16" (autocast).
        parallel: distribution of the weights; "ddp" (all of them in each process) or "fsdp"
            (sharded over the processes).
        data: training data.
        held_out: evaluation data.
        optimizer: optimizer of the model.
        every: intervals of logs, checkpoints, evaluations and image sheets.
        ema: decay of the averaged weights, which are evaluated and saved, in [0, 1); 0 turns the
            average off.
        workers: number of data loading processes; 0 loads in the training process.
        prefetch: number of batches that each data loading process loads ahead.
        keep: number of checkpoints to keep; older ones are deleted.
        trust_remote_code: permission to run Python code from the Hugging Face folders named here.
        imports: Python modules to import first, as names or paths of .py files; they register
            further losses, encoders, token groupings and data sets.
    """

    stage: int | str = 1
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
    prefetch: int = 2
    keep: int = 2
    trust_remote_code: bool = False
    imports: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulation", "prefetch", "keep"):
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
            # Muon needs whole matrices, and each process has some rows of each.
            raise ValueError("optimizer.kind: expected adamw with parallel fsdp, got 'muon'")

    def check_warmup(self, name: str, optimizer: OptimizerSettings) -> None:
        """Raise an error unless the warm-up of an optimizer ends within the run.

        Args:
            name: name of the optimizer in the settings.
            optimizer: settings of the optimizer.

        Raises:
            ValueError: the warm-up is negative or longer than the run.
        """
        if not 0 <= optimizer.warmup <= self.steps:
            expected = f"a number from 0 to steps={self.steps}"
            raise ValueError(f"{name}.warmup: expected {expected}, got {optimizer.warmup}")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as nested plain values for YAML and JSON."""
        return to_plain(self)

    @property
    def leaves_parameters_unused(self) -> bool:
        """Flag for trainable parameters that may get no gradient in a step."""
        return False


def check_weights(losses: Any, besides: Sequence[str] = ()) -> None:
    """Raise an error unless no weight is negative and at least one is above 0.

    Args:
        losses: dataclass of weights; its field `extra` may hold further ones by name.
        besides: names of the fields that are not weights.

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


def check_extra(
    extra: Mapping[str, float], registered: Iterable[str], built_in: Sequence[str]
) -> None:
    """Raise an error unless all extra losses are registered and not built in.

    Args:
        extra: weights by name.
        registered: names of all losses.
        built_in: names of the losses that have settings of their own.

    Raises:
        ValueError: one is unknown.
    """
    known = [name for name in registered if name not in built_in]
    for name in extra:
        if name not in known:
            expected = f"registered losses ({', '.join(known) or 'none'})"
            raise ValueError(f"losses.extra: expected {expected}, got {name}")
