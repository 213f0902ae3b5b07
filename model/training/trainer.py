"""The training loop: one process or many, accumulation of gradients, exact resume."""

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

# Steps whose losses stay on the device at most.
_MAX_PENDING = 100


class Trainer:
    """Trains a stage.

    Everything that the next step depends on is in a checkpoint: weights of model, averages and
    discriminator, the optimizers, the random state, and the number of the step, from which the
    position in the data and the learning rates follow.

    Args:
        settings: of the run.
        out: folder for checkpoints, the model, pictures and logs.
        resume: go on from the newest whole checkpoint in `out`; newer ones that are damaged are
            named on stderr.

    Raises:
        TypeError, ValueError: a setting does not fit; `out` has checkpoints and `resume` is not
            set; or it is set, and there are none, all are damaged, they were made with other
            settings, or the logs are damaged.
        FolderInUseError: another run writes into `out`.
        OSError: `out` cannot be written.
        MissingExtraError: losses are to be logged, and tensorboard is not installed.
    """

    def __init__(self, settings: Settings, out: Path, resume: bool = False):
        self.settings, self.out, self.commit = settings, out, commit()
        unused = DistributedDataParallelKwargs(
            find_unused_parameters=settings.leaves_parameters_unused
        )
        self.accelerator = Accelerator(
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
            raise ValueError("held_out.samples: expected a number, as there is no end, got None")
        torch.manual_seed(settings.seed)
        stage = build_stage(settings).to(self.accelerator.device).train()
        self.collate = stage.collator()
        if not resume:
            stage.prepare(Counted(self.dataset))
        self._prepare(stage)
        self.ema = EMA(self.unwrapped, settings.ema)
        self.engine = Engine(self.accelerator, settings, self.sharded)
        self._others = self.unwrapped.start(self.engine)
        # The processes have the same weights now; what they draw from here on may differ.
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
        """Spreads a stage over the processes, and makes its optimizer."""
        settings, accelerator = self.settings, self.accelerator
        self.sharded = None
        if settings.parallel == "fsdp" and distributed.is_initialized():
            # Before the optimizer, which is to hold the shares.
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
        """The module without what distributed training puts around it."""
        return self.accelerator.unwrap_model(self.stage)

    def train(self) -> dict:
        """Runs to the last step and writes the model and `metrics.json`; returns the metrics.

        SIGINT, SIGTERM and SIGHUP end the run after the step in which they arrive, with what is due
        at that step, and a checkpoint of it.

        Raises:
            FolderInUseError: another run writes into the folder, or has done so.
            OSError: a file cannot be written; what is there stays.
            NotFiniteError, TooManyBrokenError: the run cannot go on.
            KeyboardInterrupt: a signal, which is its argument, has ended the run.
        """
        started = time.monotonic()
        with self.folder.held():
            self.accelerator.init_trackers("logs")
            self._take_steps()
            metrics = self._evaluate() | {
                # Of this process, whatever was done before it resumed.
                "seconds": time.monotonic() - started,
                "steps": self.step,
                "seed": self.settings.seed,
                "commit": self.commit,
            }
            self._export(metrics)
        self.accelerator.end_training()
        # Of this process; more than 1 % of broken samples is an error, less is said.
        for name, dataset in (("data", self.dataset), ("held_out", self.held_out)):
            said = f"{name}: {dataset.finish()}"
            print(f"process {self.accelerator.process_index}, {said}", flush=True)
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
                draws = self._due(every.pictures) or (every.pictures > 0 and last)
                if logged or evaluates or draws or len(self.losses) >= _MAX_PENDING:
                    self._write_losses(file, show, logged)
                if evaluates:
                    self._evaluate()
                if draws:
                    self._draw()
                stop = request.agreed(self.accelerator.device)
                if stop or self._due(every.checkpoint) or last:
                    self._write_losses(file, show)
                    self.folder.save(self.state, self.step, settings, file)
                if stop:
                    self.accelerator.end_training()
                    stop_after(self.step, stop, quiet=not self.main)

    def _take_step(self, batches) -> tuple[StepLosses, Tensor]:
        """Take one step; return its losses and the norm of its gradient, on the device."""
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
            file: file of the losses, in the first process.
            show: function that updates the terminal.
            logged: True to give the last step's losses to the tracker too.

        Raises:
            NotFiniteError: one is not finite; those before are written.
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
        """The whole stage with the averaged weights, in evaluation mode; all processes enter it."""
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
            # Its own: otherwise a loader draws from the state that a checkpoint has restored.
            generator=torch.Generator(),
            worker_init_fn=leave_signals_to_parent,
        )

    def _batches(self) -> Iterator[tuple[dict, Reading]]:
        """Batches without end; closing it ends the workers."""
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

    def _draw(self) -> None:
        with self._averaged() as stage:
            if self.main:
                # A sheet may have a text beside it, or there is nothing to show.
                with filling(self.out / "pictures") as folder:
                    path = folder / f"step-{self.step:08d}.png"
                    stage.draw(self.collate, Counted(self.held_out), path)
        self.accelerator.wait_for_everyone()

    def _state(self) -> TrainingState:
        modules: dict[str, nn.Module] = {"stage": self.unwrapped}
        optimizers = {"stage": self.optimizer}
        for name, other in self._others.items():
            modules[name], optimizers[name] = other.module, other.optimizer
        return TrainingState(self.accelerator, modules, optimizers, self.ema, self.dataset)

    def _export(self, metrics: dict) -> None:
        """Averaged weights in Hugging Face manner, and the metrics beside them."""
        with self._averaged() as stage:
            if self.main:
                with filling(self.out / "model") as folder:
                    stage.export(folder)
        if self.main:
            text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
            write_file(self.out / "metrics.json", text)

    def _progress(self):
        settings = self.settings
        return progress(settings.steps, self.step, settings.every.log, hidden=not self.main)


def _tracker() -> str:
    """The name of accelerate for TensorBoard, which it would leave out silently."""
    with from_extra("train"):
        import tensorboard  # noqa: F401
    return "tensorboard"
