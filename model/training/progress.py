"""Progress bar of a run, and the commit of its code."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def progress(
    steps: int, done: int, every: int, hidden: bool
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Show a progress bar on stderr, with lines of losses above it.

    Args:
        steps: number of steps of the run.
        done: number of completed steps.
        every: steps between two lines of losses; 0 for none.
        hidden: flag to show nothing.

    Yields:
        Function that takes the number of a step and its losses, `loss` among them.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(file=_ClosableStream(sys.stderr))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=hidden) as bar:
        task = bar.add_task("training", total=steps, completed=done)

        def show(step: int, losses: Mapping[str, float]) -> None:
            text = "  ".join(f"{k} {v:.4g}" for k, v in losses.items() if k != "loss")
            bar.update(task, completed=step, description=f"loss {losses['loss']:.4f}")
            if every and step % every == 0:
                bar.console.print(f"{step:>7}  {text}", highlight=False)

        yield show


class _ClosableStream:
    """Text stream that ignores write errors: a closed terminal must not end a run within a step.

    Args:
        stream: stream to write to.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def commit() -> str | None:
    """Return the commit of the code's git repository; None without repository or git."""
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, text=True, capture_output=True
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
