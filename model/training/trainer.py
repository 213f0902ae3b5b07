"""The training loop: one process or many, accumulation, an adversary, exact resume."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import subprocess
import time
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from setokim.data import (
    ENDLESS,
    Counted,
    Dataset,
    Guarded,
    GuardedCollator,
    Order,
    build_dataset,
)
from setokim.discriminator import PatchDiscriminator
from setokim.distributed import mean_over_ranks
from setokim.losses import adaptive_weight, hinge_discriminator_loss, hinge_generator_loss
from setokim.training.checkpoint import latest_checkpoint
from setokim.training.evaluation import evaluate
from setokim.training.pictures import draw_samples
from setokim.training.schedule import EMA, cosine_with_warmup, parameter_groups
from setokim.training.settings import DataSettings, OptimizerSettings, Settings
from setokim.training.stage1 import Stage1, Stage1Collator
from setokim.training.state import TrainingState, open_log

LOSSES = "losses.jsonl"
EVALUATIONS = "evaluations.jsonl"


class Trainer:
    """Trains stage 1.

    Everything that the next step depends on is in a checkpoint: weights of model, averages and
    discriminator, both optimizers, the random state, and the number of the step, from which the
    position in the data and both learning rates follow.

    Args:
        settings: of the run.
        out: folder for checkpoints, the model, pictures and logs.
        resume: go on from the newest checkpoint in `out`.

    Raises:
        TypeError, ValueError: a setting does not fit; or `out` has checkpoints and `resume` is not
            set, or they were made with other settings.
    """

    def __init__(self, settings: Settings, out: Path, resume: bool = False):
        self.settings, self.out, self.commit = settings, out, _commit()
        checkpoint = latest_checkpoint(out)
        if checkpoint is not None and not resume:
            raise ValueError(f"out: expected a folder without checkpoints, got {out}; resume it?")
        self.accelerator = Accelerator(
            mixed_precision=settings.precision,
            log_with="tensorboard" if settings.every.log else None,
            project_dir=out,
            # Layers of a trained encoder above the one that is taken get no gradient.
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    find_unused_parameters=bool(settings.model.get("encoder_trainable"))
                )
            ],
        )
        self.main = self.accelerator.is_main_process
        torch.manual_seed(settings.seed)
        stage = Stage1(settings)
        self.collate = Stage1Collator(stage)
        optimizer = _adamw(stage, settings.optimizer)
        self.stage, self.optimizer = self.accelerator.prepare(stage, optimizer)
        self.ema = EMA(self.unwrapped, settings.ema)
        self.discriminator = self.discriminator_optimizer = None
        if settings.losses.adversarial:
            discriminator = PatchDiscriminator(width=settings.discriminator_width)
            if min(self.collate.size) < discriminator.min_size:
                expected = f"at least {discriminator.min_size} pixels for the discriminator"
                raise ValueError(f"model: expected sides of {expected}, got {self.collate.size}")
            optimizer = _adamw(discriminator, settings.discriminator)
            prepared = self.accelerator.prepare(discriminator, optimizer)
            self.discriminator, self.discriminator_optimizer = prepared
        # The processes have the same weights now; what they draw from here on may differ.
        torch.manual_seed(settings.seed + 1 + self.accelerator.process_index)
        self.dataset = Guarded(_build(settings.data))
        self.held_out = Guarded(_build(settings.held_out))
        if len(self.held_out) >= ENDLESS:
            raise ValueError("held_out.samples: expected a number, as there is no end, got None")
        self.state = self._state()
        self.step = 0
        if checkpoint is not None:
            self.step = self.state.restore(checkpoint, settings)

    @property
    def unwrapped(self) -> Stage1:
        """The module without what distributed training puts around it."""
        return self.accelerator.unwrap_model(self.stage)

    def train(self) -> dict:
        """Runs to the last step and writes the model and `metrics.json`; returns the metrics."""
        started, settings = time.monotonic(), self.settings
        if self.main:
            self.out.mkdir(parents=True, exist_ok=True)
        self.accelerator.init_trackers("logs")
        batches = iter(self._loader())
        with self._progress() as progress, self._losses_log() as file:
            while self.step < settings.steps:
                losses = self._take_step(batches)
                self.step += 1
                if self.main:
                    file.write(_line({"step": self.step, **losses}))
                    file.flush()
                progress(losses)
                every = settings.every
                if self._due(every.log):
                    self.accelerator.log(losses, self.step)
                if self._due(every.evaluation) and self.step < settings.steps:
                    self._evaluate()
                if self._due(every.pictures) or (every.pictures and self.step == settings.steps):
                    self._draw()
                if self._due(every.checkpoint) or self.step == settings.steps:
                    self.state.save(self.out, self.step, settings)
        metrics = self._evaluate() | {
            # Of this process, whatever was done before it resumed.
            "seconds": time.monotonic() - started,
            "steps": self.step,
            "seed": settings.seed,
            "commit": self.commit,
        }
        if self.main:
            self._export(metrics)
        self.accelerator.end_training()
        # Of this process; more than 1 % of broken samples is an error, less is said.
        for name, dataset in (("data", self.dataset), ("held_out", self.held_out)):
            said = f"{name}: {dataset.finish()}"
            print(f"process {self.accelerator.process_index}, {said}", flush=True)
        return metrics

    def _take_step(self, batches) -> dict[str, float]:
        settings, accelerator = self.settings, self.accelerator
        adversary = self.discriminator is not None
        adversary = adversary and self.step >= settings.losses.adversarial_start
        sums: dict[str, Tensor] = {}
        for part in range(settings.accumulation):
            batch, reading = next(batches)
            self.dataset.count(reading)
            batch = {name: value.to(accelerator.device) for name, value in batch.items()}
            last = part == settings.accumulation - 1
            with self._synchronised(self.stage, last):
                found = self.stage(batch)
                picture = found.pop("picture")
                if adversary:
                    found["adversarial"] = self._adversarial(found, picture)
                accelerator.backward(sum(found.values()) / settings.accumulation)
            if adversary:
                with self._synchronised(self.discriminator, last):
                    found["discriminator"] = self._judge(batch["target"], picture.detach())
            for name, value in found.items():
                sums[name] = sums.get(name, 0) + value.detach() / settings.accumulation
        norm = self._update(self.stage, self.optimizer, settings.optimizer)
        if adversary:
            start = settings.losses.adversarial_start
            optimizer = self.discriminator_optimizer
            self._update(self.discriminator, optimizer, settings.discriminator, start)
        self.ema.update(self.unwrapped)
        losses = {name: float(mean_over_ranks(value)) for name, value in sums.items()}
        losses["loss"] = sum(value for name, value in losses.items() if name != "discriminator")
        losses["gradient_norm"] = float(norm)
        if not all(map(math.isfinite, losses.values())):
            raise RuntimeError(f"step {self.step + 1}: a loss is not finite: {losses}")
        return losses

    def _adversarial(self, found: dict[str, Tensor], picture: Tensor) -> Tensor:
        """What the generator loses to the discriminator, balanced with the reconstruction."""
        # Around the wrapper: these gradients are not the discriminator's.
        judge = self.accelerator.unwrap_model(self.discriminator).requires_grad_(False)
        loss = hinge_generator_loss(judge(picture).float())
        judge.requires_grad_(True)
        reconstruction = sum(found[n] for n in ("pixel", "perceptual") if n in found)
        weight = self.settings.losses.adversarial
        if isinstance(reconstruction, Tensor):
            last_layer = self.unwrapped.setok.detokenizer.last_layer
            weight = weight * adaptive_weight(reconstruction, loss, last_layer)
        return weight * loss

    def _judge(self, real: Tensor, fake: Tensor) -> Tensor:
        # One pass through the wrapper, which counts them.
        logits = self.discriminator(torch.cat([real, fake])).float()
        loss = hinge_discriminator_loss(*logits.chunk(2))
        self.accelerator.backward(loss / self.settings.accumulation)
        return loss

    def _update(self, module, optimizer, settings: OptimizerSettings, start: int = 0) -> Tensor:
        norm = self.accelerator.clip_grad_norm_(module.parameters(), settings.clip)
        total = max(self.settings.steps - start, settings.warmup)
        factor = cosine_with_warmup(self.step - start, settings.warmup, total, settings.least)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * factor
        optimizer.step()
        optimizer.zero_grad()
        return norm

    def _synchronised(self, module: nn.Module, last: bool):
        """Gradients travel between processes once for each step."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(module)

    def _loader(self) -> DataLoader:
        settings, accelerator = self.settings, self.accelerator
        order = Order(
            len(self.dataset),
            settings.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
            settings.seed,
            start=self.step * settings.accumulation,
        )
        return DataLoader(
            self.dataset,
            batch_sampler=order,
            collate_fn=GuardedCollator(self.collate),
            num_workers=settings.workers,
            # Its own: otherwise a loader draws from the state that a checkpoint has restored.
            generator=torch.Generator(),
        )

    def _losses_log(self):
        return open_log(self.out / LOSSES, self.step) if self.main else contextlib.nullcontext()

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _evaluate(self) -> dict[str, float | None]:
        with self.ema.swapped(self.unwrapped) as stage:
            held_out = Counted(self.held_out)
            metrics = evaluate(stage, self.collate, held_out, self.settings.batch_size)
        if self.main:
            self.accelerator.log({f"held_out/{k}": v for k, v in metrics.items()}, self.step)
            # A run that resumes evaluates some steps a second time.
            with open_log(self.out / EVALUATIONS, self.step - 1) as file:
                file.write(_line({"step": self.step, **metrics}))
        return metrics

    def _draw(self) -> None:
        if self.main:
            path = self.out / "pictures" / f"step-{self.step:08d}.png"
            with self.ema.swapped(self.unwrapped) as stage:
                draw_samples(stage, self.collate, Counted(self.held_out), path)
        self.accelerator.wait_for_everyone()

    def _state(self) -> TrainingState:
        modules, optimizers = {"stage": self.unwrapped}, {"stage": self.optimizer}
        if self.discriminator is not None:
            modules["discriminator"] = self.accelerator.unwrap_model(self.discriminator)
            optimizers["discriminator"] = self.discriminator_optimizer
        return TrainingState(self.accelerator, modules, optimizers, self.ema, self.dataset)

    def _export(self, metrics: dict) -> None:
        """Averaged weights in Hugging Face manner, the text side beside them, and the metrics."""
        with self.ema.swapped(self.unwrapped) as stage:
            stage.export(self.out / "model")
        text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
        (self.out / "metrics.json").write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def _progress(self):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        console = Console(stderr=True)
        with Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not self.main
        ) as bar:
            task = bar.add_task("training", total=self.settings.steps, completed=self.step)

            def show(losses: dict[str, float]) -> None:
                text = "  ".join(f"{k} {v:.4g}" for k, v in losses.items() if k != "loss")
                bar.update(task, completed=self.step, description=f"loss {losses['loss']:.4f}")
                if self._due(self.settings.every.log):
                    bar.console.print(f"{self.step:>7}  {text}", highlight=False)

            yield show


def _build(settings: DataSettings) -> Dataset:
    fields = dataclasses.asdict(settings)
    return build_dataset(**fields.pop("options"), **fields)


def _adamw(module: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    groups = parameter_groups(module, settings.lr, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)


def _line(values: dict) -> str:
    return json.dumps(values, allow_nan=False) + "\n"


def _commit() -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, text=True, capture_output=True
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
