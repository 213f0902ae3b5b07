"""Trial of `setok eval` in several processes: equal files, throughput, kills.

    python bench/evaluation_trial.py --out bench/results/evaluation-trial.json

The embedded model answers ShapesWorld in one process; that folder is the reference. Runs in two and
four processes must write the same bytes. Then runs are killed at random moments, by a SIGKILL of
the driver or of a worker, and resumed in another number of processes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from setok_bench.corpus_trial import COMMAND, children, kill
from setok_bench.provenance import provenance

_PROCESSES = (1, 2, 4)
# Bytes depend on the number of torch's threads, and several processes of many threads wait for one
# another.
_ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
_LIMIT = 20  # resumed runs of one trial


def main() -> None:
    """Run all trials and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2400)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = provenance(torch.device("cpu")) | {"settings": vars(arguments) | {"out": None}}
        result["runs"] = [_timed_run(folder, arguments.samples, n) for n in _PROCESSES]
        seconds = result["runs"][1]["seconds"]
        result["kills"] = [
            _killed_run(folder, arguments.samples, seconds, generator)
            for _ in range(arguments.kills)
        ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def _command(out: Path, samples: int, processes: int) -> list[str]:
    options = ["--samples", str(samples), "--workers", str(processes), "--json"]
    return [*COMMAND, "eval", "--benchmark", "shapes-world", "--out", str(out), *options]


def _timed_run(folder: Path, samples: int, processes: int) -> dict[str, Any]:
    """Run undisturbed and compare with the run in one process."""
    out = folder / str(processes)
    started = time.monotonic()
    done = subprocess.run(
        _command(out, samples, processes),
        check=True,
        capture_output=True,
        text=True,
        env=_ENVIRONMENT,
    )
    found = {
        "processes": processes,
        "seconds": time.monotonic() - started,
        "throughput": json.loads(done.stdout)["throughput"]["shapes-world"],
        "equal": _contents(out) == _contents(folder / "1"),
    }
    print(json.dumps(found), file=sys.stderr)
    return found


def _killed_run(
    folder: Path, samples: int, seconds: float, generator: random.Random
) -> dict[str, Any]:
    """Kill the driver or a worker of a run in two processes, resume it, and compare."""
    out = folder / "killed"
    shutil.rmtree(out, ignore_errors=True)
    moment, of_worker = generator.uniform(0.3, 0.85) * seconds, generator.random() < 0.5
    process = subprocess.Popen(
        _command(out, samples, 2), stdout=subprocess.DEVNULL, env=_ENVIRONMENT
    )
    time.sleep(moment)
    victim = next(iter(children(process.pid)), None) if of_worker else process.pid
    hit = process.poll() is None and kill(victim)
    code = process.wait()
    resumed = []
    while (code or not (out / "metrics.json").exists()) and len(resumed) < _LIMIT:
        resumed.append(generator.choice(_PROCESSES))
        code = subprocess.run(
            _command(out, samples, resumed[-1]),
            stdout=subprocess.DEVNULL,
            check=False,
            env=_ENVIRONMENT,
        ).returncode
    found = {
        "victim": "worker" if of_worker else "driver",
        "second": round(moment, 2),
        "killed": bool(hit),
        "resumed_in_processes": resumed,
        "equal": _contents(out) == _contents(folder / "1"),
    }
    print(json.dumps(found), file=sys.stderr)
    return found


def _contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files, generated images included, but those of locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".lock")
    }


if __name__ == "__main__":
    main()
