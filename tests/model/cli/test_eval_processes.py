"""`setok eval` in several processes: those of `--workers`, killed and resumed, and of torchrun."""

import os
import signal
import subprocess
import sys

import pytest
import yaml

from helpers.processes import alive, wait_until
from helpers.tiny_setokim import build
from setok_cli.main import main
from setokim.evaluation import batching

SMALL = 8
# Batches of 8, as the constant of the module says in the test.
_COMMAND = f"""
import sys
from setok_cli.main import main
from setokim.evaluation import batching
batching.BATCH_SIZE = {SMALL}
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Command line without `--out`: 320 questions about numbers."""
    root = tmp_path_factory.mktemp("files")
    for part in build():
        part.save_pretrained(root / "model")
    world = {"kind": "shapes-tasks", "size": 32, "seed": 1, "samples": 320}
    options = {"objects": [1, 2], "turns": 1, "tasks": {"text": 1}}
    values = {"stage": 3, "steps": 1, "start": "nowhere", "optimizer": {"warmup": 1}}
    values |= {"held_out": world | {"options": options}, "generation": {"max_new_tokens": 3}}
    (root / "stage3.yaml").write_text(yaml.safe_dump(values))
    where = ["--model", str(root / "model"), "--data", str(root / "stage3.yaml")]
    return ["eval", "--benchmark", "shapes-world", *where, "--out"]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """Files of one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "BATCH_SIZE", SMALL)
        out = tmp_path_factory.mktemp("whole")
        assert main([*command, str(out)]) == 0
    return files_of(out)


def files_of(folder):
    """Results; locks and traces of killed writers do not count."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".")
    }


def environment():
    # Rounding depends on the number of threads.
    import torch

    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def children_of(number):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(number)], capture_output=True)
    return [int(line) for line in listed.stdout.split()]


@pytest.mark.slow
def test_a_killed_command_leaves_no_process_and_resumes(
    command, whole, tmp_path, capsys, monkeypatch
):
    log = tmp_path / "predictions.jsonl"
    run = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *command, str(tmp_path), "--workers", "2"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: log.exists() and log.stat().st_size > 0, 120)
    workers = children_of(run.pid)
    # At most one of them may still load the model.
    assert len(workers) == 2
    run.send_signal(signal.SIGKILL)
    run.wait()
    wait_until(lambda: not any(map(alive, workers)), 30)
    kept = log.read_bytes()
    assert whole["predictions.jsonl"].startswith(kept) and "metrics.json" not in os.listdir(
        tmp_path
    )
    # In one process.
    monkeypatch.setattr(batching, "BATCH_SIZE", SMALL)
    assert main([*command, str(tmp_path)]) == 0
    assert files_of(tmp_path) == whole
    assert "answers in " in capsys.readouterr().err


@pytest.mark.slow
def test_ranks_of_torchrun_complete_the_log_of_another_run(command, whole, tmp_path):
    lines = whole["predictions.jsonl"].splitlines(keepends=True)
    (tmp_path / "run.json").write_bytes(whole["run.json"])
    (tmp_path / "predictions.jsonl").write_bytes(b"".join(lines[:27]) + lines[27][:50])
    script = tmp_path.parent / f"{tmp_path.name}.py"
    script.write_text(_COMMAND)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    run = subprocess.run(
        [sys.executable, *launch, *command, str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "296 answers in " in run.stderr and "processes: 2" in run.stderr
    assert run.stdout.count("text_accuracy") == 1
    assert files_of(tmp_path) == whole


def test_workers_and_torchrun_exclude_each_other(command, tmp_path, capsys, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main([*command, str(tmp_path), "--workers", "2"]) == 2
    assert "--workers: expected 1 under torchrun, got 2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path), "--workers", "0"])
    monkeypatch.delenv("RANK")
    assert main([*command, str(tmp_path), "--workers", "2", "--device", "meta:x"]) == 2
    assert "--device meta:x cannot be used" in capsys.readouterr().err
