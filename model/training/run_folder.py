"""The folder that a run writes into: which checkpoint it goes on from, and its logs."""

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
    """Folder of one run; all of its processes call the methods together, and fail together.

    Args:
        out: path, the same place for all processes.
        resume: whether the run goes on from a checkpoint there.

    Raises:
        ValueError: there are checkpoints and `resume` is not set, or it is and there are none.
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
        """Hold the folder for this run.

        Raises:
            FolderInUseError: another run writes into it, or has done so since this one looked.
            OSError: it cannot be written.
        """
        with contextlib.ExitStack() as stack:
            run_on_all_ranks(lambda: stack.enter_context(locked(self.out)) if rank() == 0 else None)
            found = self._find()
            if found != self._names:
                expected = f"the checkpoints that were there, {self._names}"
                raise FolderInUseError(f"out: expected {expected}, got {found} in {self.out}")
            yield

    def checkpoint_to_resume(self) -> Path:
        """The newest whole checkpoint; the processes share the reading.

        Newer ones that are damaged stay where they are, and are named on stderr.

        Raises:
            ValueError: all are damaged; the message says how.
        """
        damaged: list[str] = []
        for name in reversed(self._names):
            path = self.out / name
            has_sums, reason = _verdict(path)
            if reason is not None:
                damaged.append(reason)
                continue
            if not has_sums:
                _say(
                    f"{path} has no checksums, as of an earlier version: its files have their "
                    "lengths, and nothing else could be checked"
                )
            if damaged:
                _say(f"{'; '.join(damaged)}; going on from {path}")
            return path
        expected = "a folder with a whole checkpoint to resume from"
        raise ValueError(f"out: expected {expected}, got {self.out}: {'; '.join(damaged)}")

    def check_logs(self, step: int) -> None:
        """Checks that the logs can be cut to a checkpoint; nothing is cut yet.

        Args:
            step: that of the checkpoint.

        Raises:
            OSError, ValueError: as of `kept_length`.
        """

        def check() -> None:
            if rank() == 0:
                kept_length(self.out / LOSSES, step, gapless=True)
                kept_length(self.out / EVALUATIONS, step)

        run_on_all_ranks(check)

    def losses_log(self, step: int) -> contextlib.AbstractContextManager[BinaryIO | None]:
        """Opens the losses to write on after a step; the first process alone has the file."""
        if rank():
            return contextlib.nullcontext()
        return open_log(self.out / LOSSES, step, gapless=True)

    def add_evaluation(self, step: int, metrics: dict) -> None:
        """Writes a line of metrics; the first process calls it."""
        # A run that resumes evaluates some steps a second time.
        with open_log(self.out / EVALUATIONS, step - 1) as file:
            write_line(file, {"step": step, **metrics})
            sync_log(file)

    def save(
        self, state: TrainingState, step: int, settings: Settings, log: BinaryIO | None
    ) -> None:
        """Writes a checkpoint, once the losses up to its step are on the disk.

        Args:
            state: of the run.
            step: number of steps made.
            settings: of the run.
            log: of `losses_log`.

        Raises:
            OSError: the disk is full, for one; older checkpoints stay.
        """
        run_on_all_ranks(lambda: None if log is None else sync_log(log))
        state.save(self.out, step, settings)
        self._names = self._find()

    def _find(self) -> list[str]:
        """Names of checkpoints, whole or damaged, by step, as the first process sees them."""
        found = run_on_all_ranks(
            lambda: [p.name for p in checkpoints(self.out)] if rank() == 0 else []
        )
        return found[0]


def _verdict(path: Path) -> tuple[bool, str | None]:
    """Whether a checkpoint has checksums, and what is damaged; the same in all processes."""
    try:
        own = verify_checkpoint(path, rank(), world_size()), None
    except ValueError as error:
        own = True, str(error)
    told = gather_objects(own)
    return told[0][0], next((reason for _, reason in told if reason is not None), None)


def _say(text: str) -> None:
    if rank() == 0:
        print(text, file=sys.stderr, flush=True)
