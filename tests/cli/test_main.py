"""What every command does alike: signals."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from setok_kernels.cli import doctor
from setok_kernels.cli.main import main
from setok_kernels.cli.signals import STOP_SIGNALS, stops_as_interrupts


def stop_with(number):
    """A command that gets a signal while it runs, and would run on."""

    def run(_):
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 5)  # handlers run before it returns
        return 0

    return run


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)], ids=lambda v: str(v)
)
def test_a_signal_ends_a_command_with_one_line_and_its_code(name, code, monkeypatch, capsys):
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    monkeypatch.setattr(doctor, "run", stop_with(getattr(signal, name)))
    assert main(["doctor"]) == code
    assert capsys.readouterr().err == f"setok doctor: stopped by {name}\n"
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(doctor, "run", lambda _: os.kill(os.getpid(), signal.SIGHUP) or 0)
        assert main(["doctor"]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_commands_run_outside_the_main_thread(monkeypatch):
    """Where Python allows no handlers."""
    monkeypatch.setattr(doctor, "run", lambda _: 0)
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(["doctor"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_forked_worker_ends_by_the_signal_itself():
    """And does not run the clean-up of its parent."""
    with stops_as_interrupts():
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_the_process_ends_without_a_traceback():
    code = (
        "import os, signal, sys\n"
        "from setok_kernels.cli import doctor\n"
        "from setok_kernels.cli.main import main\n"
        "doctor.run = lambda _: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(main(['doctor']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (143, "setok doctor: stopped by SIGTERM\n")
