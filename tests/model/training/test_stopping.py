"""Stopping real processes by signals: the current step is finished and saved."""

import os
import pty
import select
import signal
import sys
import threading

import pytest
import torch

from helpers import tiny_stage1
from helpers.tiny_stage1 import (
    assert_same_run,
    losses_of,
    run_in_processes,
    start_in_processes,
    wait_for,
)
from setokim.training import latest_checkpoint
from setokim.training.stopping import stop_requests

CPU = torch.device("cpu")
# Two batches a step; no output is due at the step of the signal.
SETTINGS = ("steps=7", "accumulation=2", "every.checkpoint=5", "every.evaluation=2")
STEP = 3


def assert_stopped(folder, out):
    assert [line["step"] for line in losses_of(out)] == list(range(1, STEP + 1))
    assert latest_checkpoint(out).name == f"checkpoint-{STEP:08d}"
    text = (folder / "stderr.txt").read_text()
    assert f": step {STEP} is saved; --resume continues from it\n" in text
    assert not (out / "model").exists()
    return text


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_in_processes(folder, folder / "out", *SETTINGS)
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.mark.slow
@pytest.mark.parametrize("name, resumed", [("SIGINT", False), ("SIGTERM", True), ("SIGHUP", False)])
def test_a_signal_ends_the_run_after_its_step_and_it_resumes_exactly(
    tmp_path, request, name, resumed
):
    """The signal goes to all processes of the run, a data loading process included.

    What is saved does not depend on the signal, so one of the runs resumes.
    """
    number = getattr(signal, name)
    out = tmp_path / "out"
    process = start_in_processes(tmp_path, out, *SETTINGS, "workers=1", wait_at=STEP)
    wait_for(tmp_path / "waiting-0", process)
    os.killpg(process.pid, number)
    assert process.wait() == 128 + number
    text = assert_stopped(tmp_path, out)
    assert text.count(f"{name}: step") == 1 and "Traceback" not in text
    if resumed:
        done = run_in_processes(tmp_path, out, *SETTINGS, "workers=1", resume=True)
        assert done.returncode == 0, done.stderr
        assert_same_run(request.getfixturevalue("whole"), out)


@pytest.mark.slow
def test_a_closed_terminal_does_not_break_the_run(tmp_path):
    """The system sends SIGHUP, and further writes to the terminal fail."""
    config, out = tiny_stage1.tiny_file(tmp_path), tmp_path / "out"
    child, terminal = pty.fork()
    if child == 0:
        command = [sys.executable, tiny_stage1.__file__, str(config), str(out), *SETTINGS]
        command += ["every.log=1", "--world=1", "--die-at=-1"]
        command += [f"--wait-at={STEP}", f"--notes={tmp_path}"]
        os.execvpe(command[0], command, os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    while not (tmp_path / "waiting-0").exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        # An unread terminal blocks after some pages.
        if select.select([terminal], [], [], 0.01)[0]:
            os.read(terminal, 1 << 16)
    os.close(terminal)
    os.waitpid(child, 0)
    assert [line["step"] for line in losses_of(out)] == list(range(1, STEP + 1))
    assert latest_checkpoint(out).name == f"checkpoint-{STEP:08d}"


@pytest.mark.slow
def test_a_second_signal_ends_the_run_at_once(tmp_path):
    (tmp_path / "stay").touch()
    process = start_in_processes(tmp_path, tmp_path / "out", *SETTINGS, wait_at=STEP)
    wait_for(tmp_path / "waiting-0", process)
    process.send_signal(signal.SIGTERM)
    wait_for(tmp_path / "noted", process)
    process.send_signal(signal.SIGTERM)
    # The default effect of the signal.
    assert process.wait() == -signal.SIGTERM
    assert latest_checkpoint(tmp_path / "out") is None
    assert [line["step"] for line in losses_of(tmp_path / "out")] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["one", "launcher"])
def test_all_processes_stop_after_the_same_step(tmp_path, to):
    """The signal goes to one process, or to torchrun, which forwards it to all."""
    out, settings = tmp_path / "out", (*SETTINGS, "batch_size=2")
    process = start_in_processes(tmp_path, out, *settings, world=2, wait_at=STEP)
    ranks = [int(wait_for(tmp_path / f"waiting-{i}", process).read_text()) for i in range(2)]
    os.kill(ranks[1] if to == "one" else process.pid, signal.SIGTERM)
    # torchrun has its own exit code and traceback.
    assert process.wait() != 0
    text = assert_stopped(tmp_path, out)
    assert text.count("SIGTERM: step") == 1
    if to == "launcher":
        return
    done = run_in_processes(tmp_path, out, *settings, world=2, resume=True)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in losses_of(out)] == list(range(1, 8))
    other = tmp_path / "whole"
    assert run_in_processes(tmp_path, other, *settings, world=2).returncode == 0
    assert_same_run(other, out)


def test_the_first_signal_counts_and_handlers_are_restored():
    received = []
    before = {n: signal.signal(n, lambda n, _: received.append(n)) for n in (2, 15, 1)}
    try:
        installed = {n: signal.getsignal(n) for n in before}
        with stop_requests() as request:
            assert request.agreed(CPU) == 0
            for number in (signal.SIGHUP, signal.SIGHUP):
                os.kill(os.getpid(), number)
            # A closing terminal sends two of them.
            assert received == [] and request.agreed(CPU) == signal.SIGHUP
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == [signal.SIGTERM] and request.agreed(CPU) == signal.SIGHUP
        with stop_requests() as request:
            for number in (signal.SIGINT, signal.SIGHUP):
                os.kill(os.getpid(), number)
            assert request.agreed(CPU) == signal.SIGINT
        assert {n: signal.getsignal(n) for n in before} == installed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_an_ignored_signal_stays_ignored():
    """nohup ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.agreed(CPU) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_there_are_no_handlers():
    found = []

    def run():
        with stop_requests() as request:
            found.append(request.agreed(CPU))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [0]
