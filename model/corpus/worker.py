"""What a process does with the parts it gets: one shard for each, and a report."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from setokim.corpus.entries import Part
from setokim.corpus.pipeline import Clock, UnreadableSourceError, process
from setokim.corpus.settings import CorpusSettings
from setokim.corpus.shard import ShardFiles
from setokim.corpus.tokenizers import CorpusTokenizer, build_tokenizer
from setokim.data.archives import SourceError
from setokim.utils.host_memory import reuse_freed_memory

# Attempts to read a remote source whose connection is lost, and seconds before the next one, times
# the number of attempts before.
_ATTEMPTS, _PAUSE = 3, 2.0


@dataclass(frozen=True)
class Job:
    """A part of the source with its number, as an engine hands it out.

    Attributes:
        number: number of the part.
        part: part of the source.
    """

    number: int
    part: Part

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"shard {self.number:06d}"


@dataclass(frozen=True)
class WorkerFactory:
    """Builds the worker of a process; can be pickled.

    Attributes:
        settings: settings of the corpus.
        folder: folder of the shards.
        fingerprint: fingerprint of the tokenizer's parts.
        has_conversations: flag of samples that are conversations.
        decoders: number of decoding threads.
        threads: number of torch's threads on a CPU.
        working_directory: folder that relative paths start from.
    """

    settings: CorpusSettings
    folder: Path
    fingerprint: dict[str, str]
    has_conversations: bool
    decoders: int
    threads: int
    working_directory: str

    def __call__(self, device: str) -> Worker:
        """Build the worker on a device."""
        return Worker(self, device)


class Worker:
    """Tokenizer of parts in one process.

    Args:
        factory: what the worker shall do.
        device: name of its device.

    Raises:
        OSError: the working directory does not exist on this machine.
        ValueError: the model is missing, damaged, or another one than that of the run.
    """

    def __init__(self, factory: WorkerFactory, device: str):
        # A process of another engine may have started elsewhere.
        os.chdir(factory.working_directory)
        # Sums are rounded by the number of threads.
        torch.set_num_threads(factory.threads)
        reuse_freed_memory()
        self._factory = factory
        self._tokenizer: CorpusTokenizer = build_tokenizer(factory.settings, torch.device(device))
        found = self._tokenizer.identity()["fingerprint"]
        if found != factory.fingerprint:
            raise ValueError(
                f"model: expected the tokenizer {factory.fingerprint} of the run, got {found}"
            )

    def __call__(self, job: Job) -> dict[str, Any]:
        """Write the shard of a part.

        Returns:
            `part`, its number; `shard`, the fields of a `manifest.Shard`, or None with `error` if
            the source could not be read; `seconds` of each step; `memory`, the max resident bytes
            of the process.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        clock = Clock()
        report: dict[str, Any] = {"part": job.number, "shard": None, "error": None}
        for attempt in range(_ATTEMPTS):
            time.sleep(_PAUSE * attempt)
            try:
                report |= {"shard": self._write(job, clock), "error": None}
                break
            except UnreadableSourceError as error:
                report["error"] = str(error)
                # Another attempt finds no other file, but perhaps a connection.
                if not isinstance(error.__cause__, SourceError):
                    break
        # Kibibytes on Linux.
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return report | {"seconds": clock.seconds, "memory": memory}

    def _write(self, job: Job, clock: Clock) -> dict[str, Any]:
        """Write the files of a shard and return its record.

        Raises:
            UnreadableSourceError: the source cannot be read; there are no files then.
            OSError: the files cannot be written.
        """
        factory = self._factory
        files = ShardFiles(factory.folder, job.number, factory.settings, factory.has_conversations)
        with files.writing() as sink:
            process(
                job.part.entries(),
                self._tokenizer,
                factory.settings.batch_size,
                factory.decoders,
                sink,
                clock,
            )
        with clock("write"):
            return asdict(files.record())
