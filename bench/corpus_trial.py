"""Trial of `setok tokenize` on a generated corpus: equal bytes, kills, throughput, memory.

    python bench/corpus_trial.py --images 10000 --out bench/results/corpus-trial.json

An undisturbed run of the local engine is the reference. Ray must write the same bytes. Then runs
are killed at random moments, by a SIGKILL of the driver or a worker, or by the loss of a node of a
Ray cluster, and repeated until they are done. The folder must equal the reference, byte for byte.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from setok_bench.corpora import Corpus, write_corpus
from setok_bench.provenance import provenance

COMMAND = [sys.executable, "-c", "from setok_cli.main import main; raise SystemExit(main())"]
# Files that tell of times and processes.
_UNLIKE = ("metrics.jsonl",)
_LIMIT = 20  # reruns of one trial


def main() -> None:
    """Run all trials and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--broken", type=int, default=100)
    parser.add_argument("--kills", type=int, default=10, help="of each kind")
    parser.add_argument("--kinds", nargs="*", choices=_KINDS, default=list(_KINDS))
    parser.add_argument("--grid", default="27x27", help="patches of the encoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        trial = Trial(Path(name), arguments)
        result = provenance(torch.device("cpu")) | {"settings": vars(arguments) | {"out": None}}
        result["runs"] = trial.compare_engines()
        result["parts"] = trial.time_parts()
        result["kills"] = [
            trial.kill(kind, generator) for kind in arguments.kinds for _ in range(arguments.kills)
        ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


class Trial:
    """A corpus, its reference folder, and the trials on them.

    Args:
        folder: folder for all files.
        arguments: options of the command line.
    """

    def __init__(self, folder: Path, arguments: argparse.Namespace):
        self._folder, self._grid = folder, arguments.grid
        self._corpus: Corpus = write_corpus(
            folder / "corpus", arguments.images, arguments.shards, arguments.broken, arguments.seed
        )
        self._reference = folder / "reference"
        self._seconds: dict[str, float] = {}

    def compare_engines(self) -> dict[str, Any]:
        """Run both engines undisturbed and compare their folders."""
        found: dict[str, Any] = {}
        for engine in ("local", "ray"):
            out = self._reference if engine == "local" else self._folder / engine
            started = time.monotonic()
            subprocess.run(self._command(out, "--engine", engine), check=True, stdout=sys.stderr)
            self._seconds[engine] = time.monotonic() - started
            found[engine] = {"seconds": self._seconds[engine]} | _metrics(out)
        found["equal"] = _contents(self._folder / "ray") == _contents(self._reference)
        manifest = [json.loads(line) for line in (self._reference / "shards.jsonl").open()]
        found["images"] = sum(shard["images"] for shard in manifest)
        found["expected_images"] = self._corpus.readable
        broken = {key for shard in manifest for key, _ in shard["broken"]}
        found["broken_as_expected"] = broken == set(self._corpus.broken)
        found["bytes"] = sum(size for shard in manifest for _, size, _ in shard["files"])
        print(json.dumps(found), file=sys.stderr)
        return found

    def time_parts(self) -> dict[str, float]:
        """Return the seconds of each step for an image of one shard, each step alone."""
        from setokim.corpus.entries import ArchivePart
        from setokim.corpus.settings import CorpusSettings, SourceSettings, TokenizerSettings
        from setokim.corpus.tokenizers import build_tokenizer
        from setokim.data import BrokenSampleError
        from setokim.data.tokens.layout import Layout, TokenRow
        from setokim.data.tokens.parquet import ParquetTokenWriter
        from setokim.utils.host_memory import reuse_freed_memory

        reuse_freed_memory()
        torch.set_num_threads(1)
        rows, columns = map(int, self._grid.split("x"))
        layout = Layout(("tokens",), "bf16")
        encoder = TokenizerSettings(encoder="patch-statistics", grid=(rows, columns))
        settings = CorpusSettings(SourceSettings(()), encoder, layout)
        tokenizer = build_tokenizer(settings, torch.device("cpu"))
        part = ArchivePart(str(self._corpus.shards[0]))
        entries, read = _timed(lambda: list(part.entries()))
        pixels, sizes = [], []

        def decode() -> None:
            for entry in entries:
                with contextlib.suppress(BrokenSampleError):
                    image = entry.load().image
                    pixels.append(tokenizer.preprocess([image]))
                    sizes.append((image.height, image.width))

        _, decoding = _timed(decode)
        batches = [torch.cat(pixels[i : i + 32]) for i in range(0, len(pixels), 32)]
        tokenizer.tokenize(batches[0], sizes[:32])
        stored, encoding = _timed(
            lambda: [
                image
                for i, batch in enumerate(batches)
                for image in tokenizer.tokenize(batch, sizes[32 * i : 32 * i + 32])
            ]
        )

        def write() -> None:
            with ParquetTokenWriter(self._folder / "write.parquet", layout) as writer:
                for number, image in enumerate(stored):
                    writer.add(TokenRow(str(number), None, image))

        write()
        _, writing = _timed(write)
        number = len(pixels)
        found = {
            "read": read / number,
            "decode": decoding / number,
            "encode": encoding / number,
            "write": writing / number,
        }
        print(json.dumps(found), file=sys.stderr)
        return found

    def kill(self, kind: str, generator: random.Random) -> dict[str, Any]:
        """Kill a process of a run at a random moment, finish the run, and compare the folders."""
        out = self._folder / f"killed-{kind}"
        shutil.rmtree(out, ignore_errors=True)
        moment = generator.uniform(0.1, 0.95)
        with _KINDS[kind](self, out) as (process, victim):
            at = moment * self._seconds[kind.partition("-")[0]]
            time.sleep(at)
            hit = process.poll() is None and victim()
            code = process.wait()
            done = _lines(out / "shards.jsonl")
            reruns = 0
            while (process.returncode or not _is_finished(out)) and reruns < _LIMIT:
                reruns += 1
                options = self._options_of(kind)
                process = subprocess.Popen(self._command(out, *options), stdout=sys.stderr)
                process.wait()
        found = {
            "kind": kind,
            "second": round(at, 2),
            "killed": bool(hit),
            "exit_code": code,
            "shards_after": done,
            "reruns": reruns,
            "equal": _contents(out) == _contents(self._reference),
        }
        print(json.dumps(found), file=sys.stderr)
        return found

    def _options_of(self, kind: str) -> list[str]:
        return ["--engine", "ray"] if kind.startswith("ray") else []

    def _command(self, out: Path, *options: str) -> list[str]:
        source = f"{self._folder}/corpus/shard-{{00000..{len(self._corpus.shards) - 1:05d}}}.tar"
        return [
            *COMMAND,
            *("tokenize", source, "--encoder", "patch-statistics", "--grid", self._grid),
            *("--out", str(out), "--max-failures", "5%", "--workers", "2", *options),
        ]

    @contextlib.contextmanager
    def local_driver(self, out: Path) -> Iterator[tuple[subprocess.Popen, Callable[[], bool]]]:
        """Start a local run; the victim is its driver."""
        with self._started(out) as process:
            yield process, lambda: kill(process.pid)

    @contextlib.contextmanager
    def local_worker(self, out: Path) -> Iterator[tuple[subprocess.Popen, Callable[[], bool]]]:
        """Start a local run; the victim is one of its workers."""
        with self._started(out) as process:
            yield process, lambda: kill(next(iter(children(process.pid)), None))

    @contextlib.contextmanager
    def ray_worker(self, out: Path) -> Iterator[tuple[subprocess.Popen, Callable[[], bool]]]:
        """Start a run on Ray; the victim is an actor's process."""
        with self._started(out, "--engine", "ray") as process:
            yield process, lambda: kill(_actor())

    @contextlib.contextmanager
    def ray_node(self, out: Path) -> Iterator[tuple[subprocess.Popen, Callable[[], bool]]]:
        """Start a run on three nodes; the victim is one without the driver."""
        from ray.cluster_utils import Cluster

        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=0, object_store_memory=100 << 20)
            nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 << 20) for _ in "ab"]
            cluster.wait_for_nodes()
            with self._started(out, "--engine", "ray", "--ray-address", cluster.address) as process:

                def victim() -> bool:
                    cluster.remove_node(nodes[0], allow_graceful=False)
                    cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
                    return True

                yield process, victim
        finally:
            cluster.shutdown()

    @contextlib.contextmanager
    def _started(self, out: Path, *options: str) -> Iterator[subprocess.Popen]:
        process = subprocess.Popen(self._command(out, *options), stdout=sys.stderr)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


_KINDS = {
    "local-driver": Trial.local_driver,
    "local-worker": Trial.local_worker,
    "ray-worker": Trial.ray_worker,
    "ray-node": Trial.ray_node,
}


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    found = work()
    return found, time.perf_counter() - started


def _contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files but those of times and locks."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name not in _UNLIKE and not path.name.startswith(".lock")
    }


def _metrics(out: Path) -> dict[str, Any]:
    """Return the rates and the memory that a run reported."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    memory = [line["memory_bytes"] for line in lines]
    steps = {step: sum(line["seconds"][step] for line in lines) for step in lines[0]["seconds"]}
    return {
        "images_per_second": lines[-1]["images_per_second"],
        "tokens_per_second": lines[-1]["tokens_per_second"],
        "step_seconds": steps,
        "memory_bytes": memory,
        "memory_growth": max(memory) / median(memory[: max(1, len(memory) // 4)]),
    }


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _is_finished(out: Path) -> bool:
    path = out / "manifest.json"
    return path.exists() and _lines(out / "shards.jsonl") == json.loads(path.read_text())["parts"]


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]


def _actor() -> int | None:
    """Return the process of an actor of Ray that runs our worker."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith((b"ray::MapWorker", b"ray::_MapWorker")):
                return int(path.parent.name)
    return None


def kill(pid: int | None) -> bool:
    """Kill a process; return whether there is one."""
    if pid is None:
        return False
    os.kill(pid, signal.SIGKILL)
    return True


if __name__ == "__main__":
    main()
