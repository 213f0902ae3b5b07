"""The processes that verify the Triton kernels: what may come of them.

No GPU is needed: small programs run in place of the cases.
"""

import re
import signal
import sys

import pytest
import torch

from helpers.some_gpu import IDENTITY
from setok_kernels.equivalence import child
from setok_kernels.verification import identity, processes
from setok_kernels.verification.verdict import Verdict

pytest.importorskip("triton", exc_type=ImportError)

GPU = torch.device("cuda", 0)


def program(tmp_path, body):
    """A command that does `body` in place of the cases of a group."""
    path = tmp_path / "program.py"
    path.write_text(
        "import json, os, signal, sys, time\n"
        "group, out = sys.argv[sys.argv.index('--group') + 1], sys.argv[-1]\n"
        "def write(**line):\n"
        "    with open(out, 'a') as file: file.write(json.dumps(line) + '\\n')\n" + body
    )
    return [sys.executable, "-S", str(path)]


@pytest.fixture
def two_groups(monkeypatch):
    monkeypatch.setattr(processes, "GROUPS", {name: (name,) for name in ("first", "second")})


DONE = "write(case=group); write(case=group, state='passed', seconds=0.1, message='')\n"


@pytest.mark.parametrize(
    "body, state, reason",
    [
        (DONE, "passed", "^$"),
        (
            DONE.replace("'passed'", "'failed' if group == 'second' else 'passed'"),
            "failed",
            "^second: $",
        ),
        (
            "write(case=group)\nos.kill(os.getpid(), signal.SIGSEGV)",
            "failed",
            "^first: the process ended with signal 11; second: the process ended with signal 11$",
        ),
        # The machine was short of memory, or somebody had enough.
        (
            DONE + "write(case='more')\nif group == 'first': os.kill(os.getpid(), signal.SIGKILL)",
            "unknown",
            "^more: the process ended with signal 9$",
        ),
        (
            "print('CUDA error: busy', file=sys.stderr); sys.exit(3)",
            "unknown",
            "^the process could not start: CUDA error: busy$",
        ),
        ("sys.exit(1)", "unknown", "^group first: .* exit status 1; group second: .*status 1$"),
        ("pass", "unknown", "^only 0 of 2 cases ran$"),
        (DONE + "open(out, 'a').write('{\"case')", "passed", "^$"),
        (
            "write(case=group)\nif group == 'first': time.sleep(60)",
            "failed",
            "^first: timed out after 1 s$",
        ),
    ],
)
def test_what_may_come_of_the_processes(body, state, reason, two_groups, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "LIMIT_SECONDS", 1.0)
    found = processes.run_children(GPU, IDENTITY, program(tmp_path, body))
    assert found.state == state
    assert re.search(reason, found.reason), found.reason
    assert Verdict.of_json(found.to_json()) == found


def test_processes_that_cannot_be_started(two_groups, monkeypatch):
    found = processes.run_children(GPU, IDENTITY, ["/no/such/program"])
    assert found.state == "unknown" and "could not be started" in found.reason
    monkeypatch.setattr(sys, "executable", "")
    found = processes.run_children(GPU, IDENTITY)
    assert found.state == "unknown" and "no Python executable" in found.reason


def test_a_process_itself(tmp_path, monkeypatch):
    """With the interpreter and the CPU in place of a GPU, and one of the cases."""
    path = tmp_path / "program.py"
    path.write_text(
        "import os\n"
        "assert os.environ['TRITON_INTERPRET'] == '0' and os.environ['SETOK_VERIFY'] == '0'\n"
        "os.environ['TRITON_INTERPRET'] = '1'\n"
        "from setok_kernels.equivalence import cases, child\n"
        "child.GROUPS = {'hard': ('threshold_greedy',)}\n"
        "child.main(sizes=cases.Sizes(tokens=9, many=18, dim=6, clusters=3))\n"
    )
    monkeypatch.setattr(processes, "GROUPS", {"hard": ("threshold_greedy",)})
    device = torch.device("cpu")
    command = [sys.executable, str(path)]
    found = processes.run_children(device, identity.identify(device), command)
    assert found.state == "passed" and found.outcomes[0].case == "threshold_greedy", found


def test_a_process_that_has_another_device(tmp_path, capsys):
    arguments = ["--device", "cpu", "--key", IDENTITY.key, "--group", "hard"]
    with pytest.raises(SystemExit, match=str(processes.COULD_NOT_BEGIN)):
        child.main([*arguments, str(tmp_path / "out")])
    assert "cpu: expected the device, driver and versions of" in capsys.readouterr().err


def test_signals_are_those_of_the_platform():
    assert signal.SIGSEGV in processes._FAULTS and signal.SIGKILL not in processes._FAULTS
