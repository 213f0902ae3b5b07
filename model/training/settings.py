"""Settings of a training run: a YAML file, and `key=value` on top of it."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class DataSettings:
    """Where samples come from.

    Attributes:
        kind: "shapes-world", "folder" or "shards".
        path: of the folder, or a pattern for the shards.
        size: side of the pictures of shapes-world, in pixels.
        seed: of shapes-world.
        samples: how many to take, in order; None for all.
        options: further arguments of the data set.
    """

    kind: str = "shapes-world"
    path: str | None = None
    size: int = 64
    seed: int = 0
    samples: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with warm-up and a cosine.

    Attributes:
        lr: at the end of the warm-up.
        weight_decay: of matrices; vectors have none.
        betas: of AdamW.
        warmup: steps of linear warm-up.
        least: factor of `lr` at the last step.
        clip: largest norm of the gradient.
    """

    lr: float = 5e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: int = 10_000
    least: float = 0.0
    clip: float = 1.0


@dataclass(frozen=True)
class LossSettings:
    """Weights of the losses; one of weight 0 is not computed.

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
    """A whole run.

    Attributes:
        stage: of the paper's training; 1 trains tokenizer and detokenizer.
        seed: of the weights and of the order of the samples.
        steps: of the optimizer.
        batch_size: samples of one process at once.
        accumulation: batches for one step.
        precision: "no" (float32) or "bf16".
        model: fields of `SetokConfig`; `encoder` may also name a Hugging Face model.
        text_encoder: "concepts" (built in), or the name or folder of a Hugging Face text encoder.
        discriminator_width: channels of the patch discriminator's first layer.
        data: for training.
        held_out: for evaluation.
        optimizer: of the model.
        discriminator: of the discriminator.
        losses: their weights.
        every: how often things happen.
        ema: decay of the averaged weights that are evaluated and saved; 0 for none.
        workers: processes that load data; 0 for none.
        keep: checkpoints to keep.
    """

    stage: int = 1
    seed: int = 0
    steps: int = 100_000
    batch_size: int = 16
    accumulation: int = 8
    precision: str = "bf16"
    model: dict[str, Any] = field(default_factory=dict)
    text_encoder: str = "concepts"
    discriminator_width: int = 64
    data: DataSettings = field(default_factory=DataSettings)
    held_out: DataSettings = field(default_factory=lambda: DataSettings(samples=256))
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    discriminator: OptimizerSettings = field(default_factory=OptimizerSettings)
    losses: LossSettings = field(default_factory=LossSettings)
    every: EverySettings = field(default_factory=EverySettings)
    ema: float = 0.999
    workers: int = 2
    keep: int = 2

    def __post_init__(self):
        if self.stage != 1:
            raise ValueError(f"stage: expected 1, got {self.stage!r}")
        for name in ("steps", "batch_size", "accumulation", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("seed", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if self.precision not in ("no", "bf16"):
            raise ValueError(f"precision: expected no or bf16, got {self.precision!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema: expected a number in [0, 1), got {self.ema}")
        for name, weight in dataclasses.asdict(self.losses).items():
            if isinstance(weight, (int, float)) and weight < 0:
                raise ValueError(f"losses.{name}: expected at least 0, got {weight}")
        self._check_training()

    def _check_training(self) -> None:
        """What would otherwise come to light in the middle of a run."""
        losses, used = self.losses, {"optimizer": self.optimizer}
        if losses.adversarial:
            used["discriminator"] = self.discriminator
        for name, optimizer in used.items():
            if not 0 <= optimizer.warmup <= self.steps:
                expected = f"a number from 0 to steps={self.steps}"
                raise ValueError(f"{name}.warmup: expected {expected}, got {optimizer.warmup}")
        drawing = losses.l1 or losses.l2 or losses.perceptual
        if not (drawing or losses.contrastive or losses.adversarial):
            raise ValueError("losses: expected at least one weight above 0, got none")
        if losses.adversarial and losses.adversarial_start and not drawing:
            # Nothing would train the detokenizer until then.
            expected = "0 with no other loss of the pictures"
            got = losses.adversarial_start
            raise ValueError(f"losses.adversarial_start: expected {expected}, got {got}")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as YAML and JSON take them."""
        return _plain(dataclasses.asdict(self))


def load_settings(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Reads a YAML file.

    Args:
        path: of the file.
        overrides: "key=value", with dots for nested keys; values are YAML.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no YAML, a key is unknown, or a value does not fit.
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
    return _build(Settings, values, "")


def _build(kind: type, values: Any, where: str):
    """A dataclass from nested dicts, its types checked."""
    if not isinstance(values, dict):
        raise ValueError(f"{where.rstrip('.')}: expected keys and values, got {values!r}")
    types = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    arguments = {}
    for name, value in values.items():
        if name not in known:
            expected = f"one of {', '.join(sorted(known))}"
            raise ValueError(f"{where}{name}: expected {expected}, got {name!r}")
        arguments[name] = _convert(types[name], value, f"{where}{name}")
    return kind(**arguments)


def _convert(kind: Any, value: Any, where: str):
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, f"{where}.")
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    options = typing.get_args(kind) if is_union else (kind,)
    if value is None and type(None) in options:
        return None
    target = next(option for option in options if option is not type(None))
    origin = typing.get_origin(target) or target
    if origin is float and isinstance(value, str):
        # YAML 1.1 reads 5e-4 as text.
        try:
            return float(value)
        except ValueError:
            pass
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is tuple and isinstance(value, list):
        entries = typing.get_args(target)
        if len(value) != len(entries):
            raise ValueError(f"{where}: expected {len(entries)} values, got {value!r}")
        return tuple(_convert(*pair, where) for pair in zip(entries, value, strict=True))
    if not isinstance(value, origin) or (origin is int and isinstance(value, bool)):
        raise ValueError(f"{where}: expected {origin.__name__}, got {value!r}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
