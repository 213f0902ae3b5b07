"""What a run shows on the terminal, and which code it runs."""

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
    """A bar on stderr, with lines of losses above it.

    Args:
        steps: of the run.
        done: of them already made.
        every: steps between two lines; 0 for none.
        hidden: show nothing.

    Yields:
        A function to call with a step's number and losses, `loss` among them.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(file=_MayBeGone(sys.stderr))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=hidden) as bar:
        task = bar.add_task("training", total=steps, completed=done)

        def show(step: int, losses: Mapping[str, float]) -> None:
            text = "  ".join(f"{k} {v:.4g}" for k, v in losses.items() if k != "loss")
            bar.update(task, completed=step, description=f"loss {losses['loss']:.4f}")
            if every and step % every == 0:
                bar.console.print(f"{step:>7}  {text}", highlight=False)

        yield show


class _MayBeGone:
    """A stream whose terminal may be closed, which is no reason to end a run half-way in a step.

    Args:
        stream: what is written to as long as it is there.
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
    """The commit of the code's git repository; None where there is none, or no git."""
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, text=True, capture_output=True
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
