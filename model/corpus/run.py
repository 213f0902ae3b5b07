"""A run of `setok tokenize`: plan, resume, engine, manifest, metrics."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from setok_kernels import __version__
from setokim.corpus.engines import EngineOptions, PartFailure, find_engine
from setokim.corpus.settings import CorpusSettings, RunSettings
from setokim.corpus.sources import Plan, plan_parts
from setokim.corpus.tokenizers import build_tokenizer
from setokim.corpus.worker import Job, WorkerFactory
from setokim.data.tokens.manifest import (
    MANIFEST,
    Manifest,
    Shard,
    TokenFolderError,
    append_shard,
    differences,
    read_manifest,
    read_shards,
    write_manifest,
    write_shards,
)
from setokim.utils.checksums import checksum
from setokim.utils.files import UNFINISHED, write_file
from setokim.utils.folder_lock import locked
from setokim.utils.json_text import to_json
from setokim.utils.parsing import from_plain

BROKEN, METRICS = "broken.jsonl", "metrics.jsonl"
# Sums on a CPU are rounded by the number of threads.
_THREADS = 1


class TooManyFailuresError(RuntimeError):
    """Error for more broken samples than allowed; the finished shards stay."""


@dataclass
class Progress:
    """Progress of a run, updated after each shard.

    Attributes:
        parts: number of parts in all.
        done: number of finished parts, those of earlier runs included.
        samples: samples of all finished shards.
        images: images of all finished shards.
        tokens: tokens of all finished shards.
        broken: broken samples of all finished shards.
        seconds: duration of this run.
        new_parts: parts finished in this run.
        new_images: images stored in this run.
        new_tokens: tokens stored in this run.
        failed: reason of each part that could not be read, by its number.
        steps: seconds of each step, summed over the processes of this run.
    """

    parts: int
    done: int = 0
    samples: int = 0
    images: int = 0
    tokens: int = 0
    broken: int = 0
    seconds: float = 0.0
    new_parts: int = 0
    new_images: int = 0
    new_tokens: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)

    def add(self, shard: Shard) -> None:
        """Count a finished shard."""
        self.done += 1
        self.samples += shard.samples
        self.images += shard.images
        self.tokens += shard.tokens
        self.broken += len(shard.broken)

    @property
    def remaining_seconds(self) -> float | None:
        """Estimated time to the end; None before the first shard of this run."""
        left = self.parts - self.done - len(self.failed)
        return self.seconds / self.new_parts * left if self.new_parts else None


def tokenize_corpus(
    settings: CorpusSettings, run: RunSettings, show: Callable[[Progress], None] = lambda _: None
) -> Progress:
    """Tokenize a corpus into a folder, or what is missing there.

    Args:
        settings: source, tokenizer and layout.
        run: folder and engine.
        show: function that is called with the progress after each shard.

    Returns:
        The progress at the end; `failed` names parts whose source could not be read.

    Raises:
        FolderInUseError: another process writes into the folder.
        ImportError: a package is not installed.
        OSError: the folder cannot be written, or the disk is full.
        TokenFolderError: the folder has tokens of other settings or of another model.
        TooManyFailuresError: more samples are broken than allowed.
        ValueError: a setting does not fit, or the source or the model does not exist.
    """
    plan = plan_parts(settings.source)
    device = _device(run)
    manifest = _manifest(settings, plan, device)
    with locked(run.out, "--out"):
        done = _resume(run.out, manifest, run.verify)
        progress = Progress(len(plan.parts))
        for shard in done.values():
            progress.add(shard)
        show(progress)
        jobs = [Job(i, part) for i, part in enumerate(plan.parts) if i not in done]
        factory = WorkerFactory(
            settings,
            run.out.absolute(),
            manifest.tokenizer["fingerprint"],
            plan.conversations,
            _decoders(run, device),
            _THREADS,
            os.getcwd(),
        )
        try:
            if jobs:
                _run_jobs(jobs, factory, run, device, done, progress, show)
        finally:
            # Of workers that were killed, by whomever.
            _remove_unfinished(run.out)
        _finish(run.out, done, progress, run)
    return progress


def _run_jobs(
    jobs: list[Job],
    factory: WorkerFactory,
    run: RunSettings,
    device: str,
    done: dict[int, Shard],
    progress: Progress,
    show: Callable[[Progress], None],
) -> None:
    devices = (device,)
    if device == "cuda" and run.engine == "local":
        devices = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    options = EngineOptions(
        run.workers,
        devices,
        factory.threads,
        cores=factory.decoders + 1 if device == "cuda" else None,
        ray_address=run.ray_address,
    )
    run_parts = find_engine(run.engine)
    started = time.monotonic()
    with (
        contextlib.closing(run_parts(factory, jobs, options)) as reports,
        (run.out / METRICS).open("a", encoding="utf-8") as metrics,
    ):
        for job, report in reports:
            progress.seconds = time.monotonic() - started
            if isinstance(report, PartFailure) or report["shard"] is None:
                reason = report.reason if isinstance(report, PartFailure) else report["error"]
                progress.failed[job.number] = f"{job.part.title()}: {reason}"
                _write_metrics(metrics, progress, {"part": job.number, "error": reason})
                show(progress)
                continue
            shard: Shard = from_plain(Shard, json.loads(json.dumps(report["shard"])))
            append_shard(run.out, shard)
            done[shard.part] = shard
            progress.add(shard)
            progress.new_parts += 1
            progress.new_images += shard.images
            progress.new_tokens += shard.tokens
            for step, seconds in report["seconds"].items():
                progress.steps[step] = progress.steps.get(step, 0.0) + seconds
            own = {"seconds": report["seconds"], "memory_bytes": report["memory"]}
            counts = {"images": shard.images, "tokens": shard.tokens, "broken": len(shard.broken)}
            _write_metrics(metrics, progress, {"part": shard.part} | counts | own)
            show(progress)
            _check_limit(run, done, progress, finished=False)


def _finish(folder: Path, done: dict[int, Shard], progress: Progress, run: RunSettings) -> None:
    """Write what is sorted by the parts, equal for every order in which they were finished."""
    write_shards(folder, done.values())
    _write_broken(folder, done)
    _check_limit(run, done, progress, finished=True)


def _write_broken(folder: Path, done: dict[int, Shard]) -> None:
    lines = [
        to_json({"part": part, "key": key, "reason": reason}) + "\n"
        for part in sorted(done)
        for key, reason in done[part].broken
    ]
    write_file(folder / BROKEN, "".join(lines))


def _check_limit(
    run: RunSettings, done: dict[int, Shard], progress: Progress, finished: bool
) -> None:
    tried = progress.samples + progress.broken
    if run.limit.exceeded(progress.broken, tried, finished):
        _write_broken(run.out, done)
        raise TooManyFailuresError(
            f"--max-failures: expected at most {run.limit} broken samples, got {progress.broken} "
            f"of {tried}; {run.out / BROKEN} names them"
        )


def _write_metrics(file: Any, progress: Progress, values: dict[str, Any]) -> None:
    rate = 1 / progress.seconds if progress.seconds else 0.0
    totals = {
        "time": time.time(),
        "done": progress.done,
        "parts": progress.parts,
        "images_per_second": progress.new_images * rate,
        "tokens_per_second": progress.new_tokens * rate,
        "remaining_seconds": progress.remaining_seconds,
    }
    file.write(to_json(totals | values) + "\n")
    file.flush()


def _resume(folder: Path, manifest: Manifest, verify: bool) -> dict[int, Shard]:
    """Check the folder and return its finished shards; write the manifest of a new one."""
    _remove_unfinished(folder)
    if not (folder / MANIFEST).exists():
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if others:
            expected = f"an empty folder, or one with {MANIFEST}"
            raise TokenFolderError(f"--out: expected {expected}, got {folder} with {others[0]}")
        write_manifest(folder, manifest)
        return {}
    changed = differences(read_manifest(folder), manifest)
    if changed:
        expected = f"--out: expected the settings and the model of {folder / MANIFEST}"
        raise TokenFolderError(f"{expected}, got others of {', '.join(changed)}")
    found = read_shards(folder, manifest.parts, repair=True)
    whole = {part: one for part, one in found.items() if _is_whole(folder, one, verify)}
    if len(whole) < len(found):
        write_shards(folder, whole.values())
    return whole


def _remove_unfinished(folder: Path) -> None:
    """Remove files that were never whole."""
    for leftover in folder.glob(f"{UNFINISHED}*"):
        leftover.unlink(missing_ok=True)


def _is_whole(folder: Path, shard: Shard, verify: bool) -> bool:
    for name, size, digest in shard.files:
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return False
        if verify and checksum(path) != digest:
            return False
    return True


def _manifest(settings: CorpusSettings, plan: Plan, device: str) -> Manifest:
    tokenizer = build_tokenizer(settings, torch.device("cpu"))
    return Manifest(
        settings.kept(device),
        tokenizer.identity(),
        settings.layout,
        settings.format,
        plan.conversations,
        len(plan.parts),
        plan.checksum(),
        {"setok_kernels": __version__, "torch": torch.__version__},
        settings.origin(),
    )


def _device(run: RunSettings) -> str:
    """Return "cuda" or "cpu"."""
    if run.device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu or cuda, got {run.device!r}")
    if run.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if run.device == "cuda" and run.engine == "local" and not torch.cuda.is_available():
        # The driver of a Ray cluster needs no GPU itself.
        raise ValueError("device: expected a CUDA device, got a machine without one")
    return run.device


def _decoders(run: RunSettings, device: str) -> int:
    """Return the number of decoding threads: on a CPU the tokenizer needs the cores as much."""
    if run.decoders is not None:
        return run.decoders
    if device == "cpu":
        return 0
    processes = run.workers or max(1, torch.cuda.device_count())
    return max(1, (os.cpu_count() or 1) // processes - 1)
