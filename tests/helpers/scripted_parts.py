"""A worker for tests of engines: it writes a file for each part, and does what the part says."""

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from setokim.utils.files import write_file


class OddError(Exception):
    """An error that cannot be unpickled: its constructor takes two arguments."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


ERRORS = {
    "value": lambda: ValueError("sizes: expected 3, got 4"),
    "full": lambda: OSError(errno.ENOSPC, "No space left on device", "shard.parquet"),
    # What a connection raises whose other end has gone.
    "end": lambda: EOFError("the tar ends early"),
    "odd": lambda: OddError("this", "that"),
}


@dataclass(frozen=True)
class ScriptedPart:
    """A part.

    Attributes:
        name: name of the part and of its file.
        seconds: time that it takes.
        kills: number of processes that it kills, one after another.
        error: key of `ERRORS`; empty for none.
        ends: exit code that the process ends with; None to go on.
        forks: seconds that a child of the process lives, which shares its open files; 0 for none.
    """

    name: str
    seconds: float = 0.02
    kills: int = 0
    error: str = ""
    ends: int | None = None
    forks: float = 0.0


# A driver that waits for a minute after its first part. Its main module has no guard: a process
# that imported it would start processes of its own.
_DRIVER = """
from pathlib import Path
from helpers.scripted_parts import ScriptedFactory, ScriptedPart
from setokim.corpus.engines import EngineOptions, find_engine
parts = [ScriptedPart("fast"), *(ScriptedPart(str(i), seconds=60) for i in range(9))]
for part, _ in find_engine({engine!r})(
    ScriptedFactory(Path({folder!r})), parts, EngineOptions(workers=2)
):
    print(part.name, flush=True)
"""


def driver_text(engine, folder):
    """Python text of a driver with two processes, which then all have a part of a minute."""
    return _DRIVER.format(engine=engine, folder=str(folder))


def files_of(parts):
    """Files that `ScriptedFactory.files` finds once these parts are done."""
    return {f"{part.name}.shard": part.name.encode() * 1000 for part in parts}


@dataclass(frozen=True)
class ScriptedFactory:
    """Factory of workers that write into a folder.

    Attributes:
        folder: existing folder; its file `log` gets a line for each start of a worker or part.
        kills: number of processes that are killed before the worker is built.
    """

    folder: Path
    kills: int = 0

    def __call__(self, device):
        self.note("built", device)
        self.kill("factory", self.kills)
        return ScriptedWorker(self)

    def note(self, *words):
        with open(self.folder / "log", "a") as log:
            log.write(" ".join([str(os.getpid()), *words]) + "\n")

    def kill(self, name, number):
        """Kill this process if fewer than `number` have been killed under this name."""
        for index in range(number):
            marker = self.folder / f"killed-{name}-{index}"
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    def lines(self, word):
        """Process and further words of each line of the log with a word."""
        log = self.folder / "log"
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [(int(pid), *rest) for pid, found, *rest in lines if found == word]

    def files(self):
        """Name and content of each file that the parts have written."""
        return {path.name: path.read_bytes() for path in self.folder.glob("*.shard")}


@dataclass(frozen=True)
class ScriptedWorker:
    factory: ScriptedFactory

    def __call__(self, part):
        self.factory.note("begun", part.name)
        time.sleep(part.seconds)
        if part.forks and not os.fork():
            time.sleep(part.forks)
            os._exit(0)
        self.factory.kill(part.name, part.kills)
        if part.error:
            self.factory.note("raised", part.name)
            raise ERRORS[part.error]()
        if part.ends is not None:
            os._exit(part.ends)
        write_file(self.factory.folder / f"{part.name}.shard", part.name.encode() * 1000)
        return {"name": part.name, "process": os.getpid()}


@dataclass(frozen=True)
class ThreadsFactory:
    """Factory of workers that report their threads of torch, their device and their process."""

    def __call__(self, device):
        import torch

        def worker(part):
            # Long enough for several processes to get one.
            time.sleep(1.0)
            return {"threads": torch.get_num_threads(), "device": device, "process": os.getpid()}

        return worker
