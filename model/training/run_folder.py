"""Output folder of a run: its lock, its checkpoints and its logs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from setokim.training.base_settings import Settings
from setokim.training.checkpoint import checkpoints, verify_checkpoint
from setokim.training.logs import kept_length, open_log, sync_log, write_line
from setokim.training.state import TrainingState
from setokim.utils.distributed import gather_objects, rank, run_on_all_ranks, world_size
from setokim.utils.folder_lock import FolderInUseError, locked

LOSSES = "losses.jsonl"
EVALUATIONS = "evaluations.jsonl"


class RunFolder:
    """Output folder of one run.

    All processes call the methods together. If one fails, all fail.

    Args:
        out: path of the folder, shared by all processes.
        resume: flag of a run that continues from a checkpoint in the folder.

    Raises:
        ValueError: there are checkpoints without `resume`, or there are none with it.
    """

    def __init__(self, out: Path, resume: bool):
        self.out = out
        self._names = self._find()
        if self._names and not resume:
            raise ValueError(f"out: expected a folder without checkpoints, got {out}; resume it?")
        if resume and not self._names:
            expected = "a folder with a checkpoint to resume from"
            raise ValueError(f"out: expected {expected}, got {out}")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder for this run inside the context.

        Raises:
            FolderInUseError: another run writes into the folder, or has changed its checkpoints.
            OSError: the folder cannot be written.
        """
        with contextlib.ExitStack() as stack:
            run_on_all_ranks(lambda: stack.enter_context(locked(self.out)) if rank() == 0 else None)
            found = self._find()
            if found != self._names:
                expected = f"the same checkpoints as at the start, {self._names}"
                raise FolderInUseError(f"out: expected {expected}, got {found} in {self.out}")
            yield

    def checkpoint_to_resume(self) -> Path:
        """Return the newest undamaged checkpoint; the processes verify its files in parallel.

        Newer, damaged checkpoints are kept and listed on stderr.

        Raises:
            ValueError: all are damaged; the message has the reasons.
        """
        damaged: list[str] = []
        for name in reversed(self._names):
            path = self.out / name
            has_sums, reason = _verify(path)
            if reason is not None:
                damaged.append(reason)
                continue
            if not has_sums:
                _print_error(
                    f"{path}: no checksums, as an earlier version wrote it; only the lengths of "
                    "its files were checked"
                )
            if damaged:
                _print_error(f"{'; '.join(damaged)}; resuming from {path}")
            return path
        expected = "a folder with a whole checkpoint to resume from"
        raise ValueError(f"out: expected {expected}, got {self.out}: {'; '.join(damaged)}")

    def check_logs(self, step: int) -> None:
        """Check that the logs can be cut to a checkpoint, without cutting them.

        Args:
            step: number of the checkpoint's step.

        Raises:
            OSError, ValueError: see `kept_length`.
        """

        def check() -> None:
            if rank() == 0:
                kept_length(self.out / LOSSES, step, gapless=True)
                kept_length(self.out / EVALUATIONS, step)

        run_on_all_ranks(check)

    def losses_log(self, step: int) -> contextlib.AbstractContextManager[BinaryIO | None]:
        """Open the log of losses to append after a step; None except in the first process."""
        if rank():
            return contextlib.nullcontext()
        return open_log(self.out / LOSSES, step, gapless=True)

    def add_evaluation(self, step: int, metrics: dict) -> None:
        """Append the metrics of a step to their log; only the first process calls it."""
        # A resumed run evaluates some steps again.
        with open_log(self.out / EVALUATIONS, step - 1) as file:
            write_line(file, {"step": step, **metrics})
            sync_log(file)

    def save(
        self, state: TrainingState, step: int, settings: Settings, log: BinaryIO | None
    ) -> None:
        """Write a checkpoint, after the losses up to its step are on the disk.

        Args:
            state: training state of the run.
            step: number of completed steps.
            settings: settings of the run.
            log: file of `losses_log`.

        Raises:
            OSError: writing failed, such as on a full disk; older checkpoints stay.
        """
        run_on_all_ranks(lambda: None if log is None else sync_log(log))
        state.save(self.out, step, settings)
        self._names = self._find()

    def _find(self) -> list[str]:
        """Return the names of all checkpoints by step, as listed by the first process."""
        found = run_on_all_ranks(
            lambda: [p.name for p in checkpoints(self.out)] if rank() == 0 else []
        )
        return found[0]


def _verify(path: Path) -> tuple[bool, str | None]:
    """Return in all processes if a checkpoint has checksums, and its damage, if any."""
    try:
        own = verify_checkpoint(path, rank(), world_size()), None
    except ValueError as error:
        own = True, str(error)
    results = gather_objects(own)
    return results[0][0], next((reason for _, reason in results if reason is not None), None)


def _print_error(text: str) -> None:
    if rank() == 0:
        print(text, file=sys.stderr, flush=True)
