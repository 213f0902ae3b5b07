"""Tiny settings of stage 1, and a script that trains it in separate processes."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from setokim import SetokConfig, SetokModel
from setokim.training import latest_checkpoint
from setokim.training.settings import Stage1Settings, load_settings
from setokim.training.trainer import Trainer
from setokim.utils.checksums import SUMS, checksum, format_sums, read_sums

TINY = {
    "steps": 4,
    "batch_size": 4,
    "accumulation": 1,
    "precision": "no",
    "model": {
        "grid": [6, 6],
        "patch_size": 4,
        "cluster": {"max_clusters": 4, "k": 4, "bandwidth": 1.2, "beta": 0.0, "min_mass": 2.0},
        "width": 16,
        "heads": 2,
        "intra_layers": 1,
        "inter_layers": 1,
        "token_dim": 24,
        "outline_dim": 8,
        "decoder_width": 16,
        "decoder_cross_layers": 1,
        "decoder_layers": 1,
        "decoder_grid": [4, 4],
        "decoder_patch_size": 8,
        "mlp_ratio": 2.0,
        "concept_dim": 8,
    },
    "discriminator_width": 4,
    "data": {"size": 32, "seed": 0},
    "held_out": {"size": 32, "seed": 1, "samples": 6},
    "optimizer": {"lr": 1.0e-3, "warmup": 2},
    "discriminator": {"lr": 1.0e-3, "warmup": 2},
    "every": {"log": 0, "checkpoint": 0, "evaluation": 0, "pictures": 0},
    "ema": 0.9,
    "workers": 0,
}


def write_setok(folder: Path) -> Path:
    """Write a random model in the layout of a run of stage 1; return its folder."""
    torch.manual_seed(0)
    model = SetokModel(SetokConfig(**TINY["model"]))
    model.save_pretrained(folder)
    model.processor().save_pretrained(folder)
    return folder


def tiny_file(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def tiny_settings(folder: Path, *overrides: str) -> Stage1Settings:
    return load_settings(tiny_file(folder), overrides)


def losses_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]


def assert_same_run(whole, resumed):
    """Compare the logs, weights and checkpoints of two runs bit for bit."""
    for name in ("losses.jsonl", "evaluations.jsonl"):
        assert (resumed / name).read_text() == (whole / name).read_text()
    last = latest_checkpoint(whole)
    assert latest_checkpoint(resumed).name == last.name
    for file in (last / "tensors.safetensors", whole / "model" / "model.safetensors"):
        assert (resumed / file.relative_to(whole)).read_bytes() == file.read_bytes()


def change_settings(checkpoint: Path, **changed: Any) -> None:
    """Replace settings in a checkpoint."""
    file = checkpoint / "state.json"
    state = json.loads(file.read_text())
    state["settings"] |= changed
    file.write_text(json.dumps(state))
    sums = read_sums(checkpoint) | {file.name: checksum(file)}
    (checkpoint / SUMS).write_text(format_sums(sums))


def start_in_processes(
    folder: Path,
    out: Path,
    *overrides: str,
    world: int = 1,
    die_at: int = -1,
    wait_at: int = -1,
    resume: bool = False,
    config: Path | None = None,
) -> subprocess.Popen:
    """Start training in `world` new processes in a process group of their own.

    Their output is written to `stdout.txt` and `stderr.txt` in `folder`.

    Args:
        folder: folder for files of the test.
        out: output folder of the run.
        overrides: overrides of the settings.
        world: number of processes.
        die_at: step within which the processes kill themselves.
        wait_at: step within which each process writes its process id to `waiting-RANK` in `folder`
            and waits for a signal to any of them.
        resume: flag to resume the run.
        config: YAML file of settings; None for TINY.
    """
    launcher = [sys.executable]
    if world > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
    script = [__file__, str(config or tiny_file(folder)), str(out), *overrides]
    script += ["--resume"] if resume else []
    # Files instead of pipes: the workers of a killed run hold its pipes open for some seconds.
    with (folder / "stdout.txt").open("w") as stdout, (folder / "stderr.txt").open("w") as stderr:
        return subprocess.Popen(
            [
                *(*launcher, *script, f"--world={world}"),
                *(f"--die-at={die_at}", f"--wait-at={wait_at}", f"--notes={folder}"),
            ],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )


def run_in_processes(folder: Path, *arguments, **options) -> subprocess.CompletedProcess:
    """Train as `start_in_processes` does and wait for the end."""
    process = start_in_processes(folder, *arguments, **options)
    process.wait()
    texts = [(folder / name).read_text() for name in ("stdout.txt", "stderr.txt")]
    return subprocess.CompletedProcess(process.args, process.returncode, *texts)


def wait_for(path: Path, process: subprocess.Popen) -> Path:
    """Wait until a file exists; the time depends on the machine, so there is no limit."""
    while not path.exists():
        assert process.poll() is None, (path.parent / "stderr.txt").read_text()
        time.sleep(0.01)
    return path


class InterruptedTrainer(Trainer):
    """Trainer that kills itself within a step, or waits there for a signal."""

    die_at = wait_at = -1
    notes = Path()

    def __init__(self, *arguments):
        super().__init__(*arguments)
        synchronised = self.engine.synchronised

        def interrupted(module, last):
            if self.step + 1 == self.die_at and last:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.step + 1 == self.wait_at and last:
                self.wait_at = -1
                self._wait()
            return synchronised(module, last)

        self.engine.synchronised = interrupted

    def _wait(self):
        """Wait until SIGTERM has its former handler again, which the first signal restores."""
        recording = signal.getsignal(signal.SIGTERM)
        rank = self.accelerator.process_index
        own, noted = self.notes / f"waiting-{rank}", self.notes / "noted"
        own.with_suffix(".new").write_text(str(os.getpid()))
        own.with_suffix(".new").rename(own)
        while signal.getsignal(signal.SIGTERM) == recording and not noted.exists():
            time.sleep(0.01)
        noted.touch()
        while (self.notes / "stay").exists():
            time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--world", type=int)
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--wait-at", type=int)
    parser.add_argument("--notes", type=Path)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    # The runs to compare with have the same options.
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    settings = load_settings(arguments.config, arguments.overrides)
    trainer = InterruptedTrainer(settings, arguments.out, arguments.resume)
    trainer.die_at, trainer.wait_at = arguments.die_at, arguments.wait_at
    trainer.notes = arguments.notes
    if arguments.world > 1:
        # `accelerate launch` is known to start one process instead of two.
        assert distributed.get_world_size() == arguments.world
        assert trainer.accelerator.num_processes == arguments.world
        if trainer.settings.parallel == "fsdp":
            assert isinstance(trainer.stage, FSDPModule)
            assert all(isinstance(p, DTensor) for p in trainer.stage.parameters() if p.dim())
        else:
            assert isinstance(trainer.stage, DistributedDataParallel)
            adversary = getattr(trainer.unwrapped, "adversary", None)
            assert adversary is None or isinstance(adversary.module, DistributedDataParallel)
    try:
        trainer.train()
    except KeyboardInterrupt as stop:
        sys.exit(128 + stop.args[0])


if __name__ == "__main__":
    main()
