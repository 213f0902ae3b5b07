"""The parent of the child processes that run the equivalence cases.

After an out-of-bounds access every later CUDA call of a process fails, the reference's too, and a
kernel that hangs cannot be stopped alone. A child process also has modes, precision, random state
and memory of its own, independent of the caller's. Each group of cases has one process, because
compilation takes most of the time.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from setok_kernels.verification.groups import GROUPS
from setok_kernels.verification.identity import Identity
from setok_kernels.verification.verdict import Outcome, Verdict

# Time limit of a whole verification, which also stops a kernel that hangs. It usually takes less
# than 20 s, but compilation may be slow.
LIMIT_SECONDS = 300.0
# Exit status of a process that could not start; the last line of its stderr is the reason.
COULD_NOT_BEGIN = 3
# By name: what it imports uses the verification.
_CHILD = "setok_kernels.equivalence.child"
_LOG_CHARACTERS = 4000
# Signals of a faulty program. Others come from outside, e.g. when memory runs out.
_FAULTS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGBUS}


def run_children(
    device: torch.device, identity: Identity, command: Sequence[str] | None = None
) -> Verdict:
    """Run the cases in child processes and wait for them.

    Args:
        device: CUDA device with its index.
        identity: identity of the device.
        command: command of a child, with the arguments of `equivalence.child.main`;
            None means that function.
    """
    begin = time.monotonic()
    parts = []
    with tempfile.TemporaryDirectory(prefix="setok-") as folder:
        try:
            for group in GROUPS:
                arguments = ["--device", str(device), "--key", identity.key, "--group", group]
                parts.append(_Part.start(group, [*_command(command), *arguments], Path(folder)))
            ends = [part.wait(begin + LIMIT_SECONDS) for part in parts]
        except OSError as error:
            ends = [([], f"a process could not be started: {error}", False, "")]
        finally:
            # Also if the caller is interrupted.
            for part in parts:
                part.stop()
    outcomes = {outcome.case: outcome for found, *_ in ends for outcome in found}
    problem = "; ".join(dict.fromkeys(problem for _, problem, *_ in ends if problem))
    names = [name for group in GROUPS.values() for name in group]
    if not problem and len(outcomes) != len(names):
        problem = f"only {len(outcomes)} of {len(names)} cases ran"
    return Verdict(
        identity,
        tuple(outcomes[name] for name in names if name in outcomes),
        time.monotonic() - begin,
        problem,
        crashed=any(crashed for _, _, crashed, _ in ends),
        log="\n".join(log for *_, log in ends if log),
    )


def _command(command: Sequence[str] | None) -> list[str]:
    if command is not None:
        return list(command)
    if not sys.executable:
        raise OSError("no Python executable (sys.executable is empty)")
    return [sys.executable, "-c", f"from {_CHILD} import main; main()"]


@dataclass(frozen=True)
class _Part:
    """A child process that runs one group of cases.

    Attributes:
        group: name of the group.
        process: running process.
        out: file of the outcomes.
        log: file of its stdout and stderr.
    """

    group: str
    process: subprocess.Popen
    out: Path
    log: Path

    @classmethod
    def start(cls, group: str, command: list[str], folder: Path) -> "_Part":
        out, log = folder / f"{group}.outcomes", folder / f"{group}.log"
        environment = os.environ | {
            # The child finds the same packages, installed or not.
            "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in sys.path),
            # Compiled kernels, and no verification inside the verification.
            "TRITON_INTERPRET": "0",
            "SETOK_VERIFY": "0",
        }
        with log.open("wb") as file:
            # An empty working folder, because Python imports modules from its working folder.
            process = subprocess.Popen(
                [*command, str(out)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return cls(group, process, out, log)

    def wait(self, until: float) -> tuple[list[Outcome], str, bool, str]:
        """Return the outcomes, the problem or "", True if the kernels crashed, and the log."""
        try:
            status = self.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = None
        self.stop()
        outcomes, begun = _read(self.out)
        log = self.log.read_text(encoding="utf-8", errors="replace").strip()[-_LOG_CHARACTERS:]
        if status == 0:
            return outcomes, "", False, log
        if status == COULD_NOT_BEGIN:
            last = (log.splitlines() or ["no reason given"])[-1]
            return outcomes, f"the process could not start: {last}", False, log
        where = begun or f"group {self.group}"
        if status is None:
            return outcomes, f"{where}: timed out after {LIMIT_SECONDS:.0f} s", True, log
        cause = f"signal {-status}" if status < 0 else f"exit status {status}"
        return outcomes, f"{where}: the process ended with {cause}", -status in _FAULTS, log

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()


def _read(path: Path) -> tuple[list[Outcome], str]:
    """Return the outcomes of a file, and the case that started but has no outcome."""
    outcomes, begun = [], ""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            fields = json.loads(line)
        except ValueError:
            # The process was stopped during a write.
            break
        if "state" in fields:
            outcomes.append(Outcome(**fields))
        begun = "" if "state" in fields else fields["case"]
    return outcomes, begun
