"""Common behaviour of all commands: signals, failures of the machine, standard streams."""

import errno
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading

import pytest
import torch

from setok_cli import doctor
from setok_cli.errors import missing_package
from setok_cli.main import main
from setok_cli.signals import STOP_SIGNALS, stops_as_interrupts


def stop_with(number):
    """Register a command that receives a signal while it runs."""

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
        "from setok_cli import doctor\n"
        "from setok_cli.main import main\n"
        "doctor.run = lambda _: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(main(['doctor']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (143, "setok doctor: stopped by SIGTERM\n")


def test_only_a_missing_package_has_a_package_as_its_remedy():
    def said(error, *arguments):
        return str(missing_package(error, *arguments))

    absent = ModuleNotFoundError("No module named 'PIL.Image'", name="PIL.Image")
    assert said(absent, "cli") == 'needs PIL: pip install "setok-kernels[cli]"'
    assert said(absent, None, "--model x ") == "--model x needs PIL: pip install PIL"
    # The error of transformers for sentencepiece has no name, and its message has the remedy.
    assert said(ImportError("This needs\nsentencepiece")) == (
        "cannot import what it needs: This needs sentencepiece"
    )
    # The package is installed but has no such name.
    other = ImportError("cannot import name 'a' from 'b'", name="b")
    assert said(other, "cli") == "cannot import what it needs: cannot import name 'a' from 'b'"


def raises(error):
    def run(_):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a"), "[Errno 28] No space left on"),
        (OSError(errno.EROFS, "Read-only file system", "a"), "[Errno 30] Read-only file system"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "out of memory: CUDA out of memory"),
    ],
    ids=["full", "read-only", "memory", "accelerator"],
)
def test_failures_of_the_machine_are_one_line(error, expected, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "run", raises(error))
    assert main(["doctor"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"setok doctor: {expected}")


def test_the_message_of_torch_for_a_failed_allocation(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "run", lambda _: torch.empty(2**59, dtype=torch.uint8))
    assert main(["doctor"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line == "setok doctor: out of memory: 536,870,912.0 GiB in one piece"


def test_errors_of_the_program_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(doctor, "run", raises(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["doctor"])


def shell(command, **variables):
    """Run a shell command with `setok` as the program of this environment."""
    program = "from setok_cli.main import main; import sys; sys.exit(main())"
    setok = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}"
    return subprocess.run(
        ["bash", "-c", command.replace("setok", setok, 1)],
        capture_output=True,
        env=os.environ | variables,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("setok doctor >&-", b"setok doctor: [Errno 9] the standard output is closed\n"),
        ("setok doctor >/dev/full", b"setok doctor: [Errno 28] No space left on device\n"),
    ],
    ids=["closed", "full"],
)
def test_an_output_that_cannot_be_written(command, said):
    run = shell(command)
    assert (run.returncode, run.stderr) == (1, said)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_output_is_not_the_next_file(tmp_path, closed):
    """Python gives its descriptor to the next file, where prints would then go."""
    code = (
        "import os; from setok_cli.streams import writable_streams\n"
        "with writable_streams():\n"
        f"    assert os.open({str(tmp_path / 'file')!r}, os.O_CREAT) > 2"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {closed}"
    assert subprocess.run(["bash", "-c", command], check=False).returncode == 0


def test_an_answer_that_the_locale_cannot_encode(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(doctor, "run", lambda _: print("größe \udcff") or 0)
    assert main(["doctor"]) == 0
    assert out.buffer.getvalue() == b"gr\\xf6\\xdfe \\udcff\n"


COMMANDS = [
    "cluster",
    "explore",
    "tokenize",
    "compress",
    "train",
    "plan",
    "eval",
    "score",
    "compare",
    "chat",
    "generate",
    "edit",
    "segment",
    "bench",
    "doctor",
    "completion",
]


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["nonsense"], *([command, "--help"] for command in COMMANDS)],
    ids=" ".join,
)
def test_help_does_not_wait_for_torch(arguments):
    code = (
        "import sys; from setok_cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == (2 if arguments == ["nonsense"] else 0)
    loaded = {name.partition(".")[0] for name in run.stderr.split()}
    heavy = {"torch", "numpy", "PIL", "rich", "transformers", "setok_kernels"}
    assert "setok_cli" in loaded and not heavy & loaded


def test_all_commands_are_in_the_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = capsys.readouterr().out
    assert re.findall(r"^ {4}(\S+)", said, re.M) == COMMANDS
