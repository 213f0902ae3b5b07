"""Training loop with gradient accumulation, distributed training and exact resume."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader

from setok_kernels.extras import from_extra
from setokim.data import (
    ENDLESS,
    Counted,
    Guarded,
    GuardedCollator,
    Order,
    Reading,
)
from setokim.data.tokens.contents import contents_of
from setokim.training.base_settings import Settings
from setokim.training.engine import Engine
from setokim.training.logs import write_line
from setokim.training.optimizers import build_optimizer
from setokim.training.progress import commit, progress
from setokim.training.run_folder import RunFolder
from setokim.training.schedule import EMA
from setokim.training.sharding import Sharded
from setokim.training.stage import Stage, to_device
from setokim.training.stages import build_stage
from setokim.training.state import TrainingState
from setokim.training.step_losses import NotFiniteError, PendingLosses, StepLosses
from setokim.training.stopping import leave_signals_to_parent, stop_after, stop_requests
from setokim.utils.distributed import full_tensor
from setokim.utils.files import filling, write_file

# Maximum number of steps whose losses stay on the device.
_MAX_PENDING = 100


class Trainer:
    """Training loop of one run.

    A checkpoint holds the full state of the next step: the weights of all modules, their averages,
    the optimizers, the random states and the step number. The position in the data and the learning
    rates follow from the step number.

    Args:
        settings: settings of the run.
        out: folder for checkpoints, the model, image sheets and logs.
        resume: flag to continue from the newest undamaged checkpoint in `out`. Newer, damaged ones
            are listed on stderr.

    Raises:
        TypeError, ValueError: a setting is not valid, or `out` has checkpoints without `resume`.
            With `resume`: `out` has no checkpoint, all are damaged, their settings differ, or the
            logs are damaged.
        FolderInUseError: another run writes into `out`.
        OSError: `out` cannot be written.
        MissingExtraError: `every.log` is above 0 and tensorboard is not installed.
    """

    def __init__(self, settings: Settings, out: Path, resume: bool = False):
        self.settings, self.out, self.commit = settings, out, commit()
        unused = DistributedDataParallelKwargs(
            find_unused_parameters=settings.leaves_parameters_unused
        )
        self.accelerator = Accelerator(
            # Without this, processes that torchrun starts on a CPU would each train alone.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=settings.precision,
            log_with=_tracker() if settings.every.log else None,
            project_dir=out,
            kwargs_handlers=[unused],
        )
        self.main = self.accelerator.is_main_process
        self.folder = RunFolder(out, resume)
        self.dataset = Guarded(settings.data.build())
        self.held_out = Guarded(settings.held_out.build())
        if len(self.held_out) >= ENDLESS:
            raise ValueError(
                "held_out.samples: expected a number for an endless data set, got None"
            )
        torch.manual_seed(settings.seed)
        stage = build_stage(settings, *map(contents_of, (self.dataset, self.held_out)))
        stage = stage.to(self.accelerator.device).train()
        self.collate = stage.collator()
        if not resume:
            stage.prepare(Counted(self.dataset))
        self._prepare(stage)
        self.ema = EMA(self.unwrapped, settings.ema)
        self.engine = Engine(self.accelerator, settings, self.sharded)
        self._others = self.unwrapped.start(self.engine)
        # All processes have the same weights now. Their random numbers may differ from here on.
        torch.manual_seed(settings.seed + 1 + self.accelerator.process_index)
        self.state = self._state()
        self.losses = PendingLosses()
        self.step = 0
        if resume:
            with self.folder.held():
                checkpoint = self.folder.checkpoint_to_resume()
                self.step = self.state.restore(checkpoint, settings)
                self.folder.check_logs(self.step)

    def _prepare(self, stage: Stage) -> None:
        """Shard or wrap the stage for the processes and create its optimizer."""
        settings, accelerator = self.settings, self.accelerator
        self.sharded = None
        if settings.parallel == "fsdp" and distributed.is_initialized():
            # Before the optimizer, which must hold the shards.
            self.sharded = Sharded(stage, settings.precision)
        groups = stage.parameter_groups(settings.optimizer)
        self._rates = [group["lr"] for group in groups]
        optimizer = build_optimizer(groups, settings.optimizer)
        if self.sharded is None:
            self.stage, self.optimizer = accelerator.prepare(stage, optimizer)
        else:
            self.stage, self.optimizer = stage, accelerator.prepare(optimizer)

    @property
    def unwrapped(self) -> Stage:
        """Stage without the wrapper of distributed training."""
        return self.accelerator.unwrap_model(self.stage)

    def train(self) -> dict:
        """Train to the last step, then write the model and `metrics.json`.

        SIGINT, SIGTERM and SIGHUP end the run after the current step. Outputs due at that step are
        written, and a checkpoint of it.

        Returns:
            Metrics of the averaged weights, with `seconds`, `steps`, `seed` and `commit`.

        Raises:
            FolderInUseError: another run writes or has written into the folder.
            OSError: a file cannot be written; existing files stay.
            NotFiniteError, TooManyBrokenError: the run cannot continue.
            KeyboardInterrupt: a signal has ended the run; its argument is the signal's number.
        """
        started = time.monotonic()
        with self.folder.held():
            self.accelerator.init_trackers("logs")
            self._take_steps()
            metrics = self._evaluate() | {
                # Duration of this process, without the time before a resume.
                "seconds": time.monotonic() - started,
                "steps": self.step,
                "seed": self.settings.seed,
                "commit": self.commit,
            }
            self._export(metrics)
        self.accelerator.end_training()
        # Each process reports its broken samples; more than 1 % raise an error.
        for name, dataset in (("data", self.dataset), ("held_out", self.held_out)):
            summary = f"{name}: {dataset.finish()}"
            print(f"process {self.accelerator.process_index}, {summary}", flush=True)
        return metrics

    def _take_steps(self) -> None:
        settings, every = self.settings, self.settings.every
        with (
            stop_requests() as request,
            contextlib.closing(self._batches()) as batches,
            self._progress() as show,
            self.folder.losses_log(self.step) as file,
        ):
            while self.step < settings.steps:
                self.losses.add(self.step + 1, *self._take_step(batches))
                self.step += 1
                logged = self._due(every.log)
                evaluates = self._due(every.evaluation) and self.step < settings.steps
                last = self.step == settings.steps
                writes_samples = self._due(every.pictures) or (every.pictures > 0 and last)
                full = len(self.losses) >= _MAX_PENDING
                if logged or evaluates or writes_samples or full:
                    self._write_losses(file, show, logged)
                if evaluates:
                    self._evaluate()
                if writes_samples:
                    self._write_samples()
                stop = request.agreed(self.accelerator.device)
                if stop or self._due(every.checkpoint) or last:
                    self._write_losses(file, show)
                    self.folder.save(self.state, self.step, settings, file)
                if stop:
                    self.accelerator.end_training()
                    stop_after(self.step, stop, quiet=not self.main)

    def _take_step(self, batches) -> tuple[StepLosses, Tensor]:
        """Take one step; return its losses and its gradient norm, on the device."""
        settings, stage = self.settings, self.unwrapped
        losses = StepLosses()
        for part in range(settings.accumulation):
            batch, reading = next(batches)
            self.dataset.count(reading)
            batch = to_device(batch, self.accelerator.device)
            last = part == settings.accumulation - 1
            found = stage.accumulate(self.engine, self.stage, batch, self.step, last)
            losses.add(found, settings.accumulation)
        if self.sharded is not None:
            self.sharded.reduce()
        norm = self.engine.update(
            self.stage, self.optimizer, settings.optimizer, self._rates, self.step
        )
        stage.update(self.engine, self.step)
        self.ema.update(stage)
        return losses, full_tensor(norm)

    def _write_losses(self, file, show, logged: bool = False) -> None:
        """Write the losses of all steps since the last call.

        Args:
            file: log of the losses; None except in the first process.
            show: function that updates the terminal.
            logged: flag to pass the losses of the last step to the tracker too.

        Raises:
            NotFiniteError: a loss is not finite; the earlier ones are written.
        """
        try:
            lines = self.losses.take()
        except NotFiniteError as error:
            if self.main:
                for line in error.before:
                    write_line(file, line)
            raise
        if not lines:
            return
        if self.main:
            for line in lines:
                write_line(file, line)
        losses = {name: value for name, value in lines[-1].items() if name != "step"}
        show(self.step, losses)
        if logged:
            self.accelerator.log(losses, self.step)

    @contextlib.contextmanager
    def _averaged(self):
        """Yield the unsharded stage with averaged weights in evaluation mode, in all processes."""
        if self.sharded is None:
            weights = self.ema.swapped(self.unwrapped)
        else:
            weights = self.sharded.gathered(self.ema.averages)
        with weights as stage:
            yield stage.eval()
        self.unwrapped.train()

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
            # The loader accepts none without processes.
            prefetch_factor=settings.prefetch if settings.workers else None,
            # Copies to the device then run beside its computation.
            pin_memory=accelerator.device.type == "cuda",
            # Otherwise the loader would advance the random state restored from a checkpoint.
            generator=torch.Generator(),
            worker_init_fn=leave_signals_to_parent,
        )

    def _batches(self) -> Iterator[tuple[dict, Reading]]:
        """Yield batches without end; closing the generator ends the workers."""
        yield from self._loader()

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _evaluate(self) -> dict[str, float | None]:
        with self._averaged() as stage:
            batch_size = self.settings.batch_size
            metrics = stage.evaluate(self.collate, Counted(self.held_out), batch_size)
        if self.main:
            self.accelerator.log({f"held_out/{k}": v for k, v in metrics.items()}, self.step)
            self.folder.add_evaluation(self.step, metrics)
        return metrics

    def _write_samples(self) -> None:
        with self._averaged() as stage:
            if self.main:
                # A stage may write a text file beside the sheet, or nothing at all.
                with filling(self.out / "pictures") as folder:
                    path = folder / f"step-{self.step:08d}.png"
                    stage.write_samples(self.collate, Counted(self.held_out), path)
        self.accelerator.wait_for_everyone()

    def _state(self) -> TrainingState:
        modules: dict[str, nn.Module] = {"stage": self.unwrapped}
        optimizers = {"stage": self.optimizer}
        for name, other in self._others.items():
            modules[name], optimizers[name] = other.module, other.optimizer
        return TrainingState(self.accelerator, modules, optimizers, self.ema, self.dataset)

    def _export(self, metrics: dict) -> None:
        """Write the averaged weights in the Hugging Face layout, and the metrics."""
        with self._averaged() as stage:
            if self.main:
                with filling(self.out / "model") as folder:
                    stage.export(folder)
        if self.main:
            text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
            write_file(self.out / "metrics.json", text)
        # A process that ends would take those with it that still write.
        self.accelerator.wait_for_everyone()

    def _progress(self):
        settings = self.settings
        return progress(settings.steps, self.step, settings.every.log, hidden=not self.main)


def _tracker() -> str:
    """Return accelerate's name of TensorBoard; accelerate skips a missing one silently."""
    with from_extra("train"):
        import tensorboard  # noqa: F401
    return "tensorboard"
