"""Child processes that run the equivalence cases, and the parent's wait for them.

After an out-of-bounds access every later CUDA call of a process fails, the reference's too, and a
kernel that hangs cannot be stopped alone. A child process also has modes, precision, random state
and memory of its own, independent of the caller's. Each group of cases has one process, because
compilation takes most of the time.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from setok_kernels.verification import cases
from setok_kernels.verification.cases import REAL, Sizes
from setok_kernels.verification.identity import Identity, identify
from setok_kernels.verification.verdict import Outcome, Verdict

# Time limit of a whole verification, which also stops a kernel that hangs. It usually takes less
# than 20 s, but compilation may be slow.
LIMIT_SECONDS = 300.0
# Exit status of a process that could not start; the last line of its stderr is the reason.
COULD_NOT_BEGIN = 3
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
        command: command of a child, with the arguments of `main`; None means this module.
    """
    begin = time.monotonic()
    parts = []
    with tempfile.TemporaryDirectory(prefix="setok-") as folder:
        try:
            for group in dict.fromkeys(case.group for case in cases.CASES):
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
    if not problem and len(outcomes) != len(cases.CASES):
        problem = f"only {len(outcomes)} of {len(cases.CASES)} cases ran"
    return Verdict(
        identity,
        tuple(outcomes[case.name] for case in cases.CASES if case.name in outcomes),
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
    return [sys.executable, "-c", f"from {__name__} import main; main()"]


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


def main(argv: Sequence[str] | None = None, sizes: Sizes = REAL) -> None:
    """Run the cases of one group, and write a line before and after each.

    Args:
        argv: command-line arguments; None means those of the process.
        sizes: sizes of the test inputs.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--key", required=True, help="expected key of the device's identity")
    parser.add_argument("--group", required=True)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args(argv)
    device = arguments.device
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
            # Create the context: this fails without memory or permission.
            torch.zeros(1, device=device).item()
        if identify(device).key != arguments.key:
            raise RuntimeError(
                f"{device}: expected the device, driver and versions of the parent process, "
                "got others"
            )
    except (RuntimeError, AssertionError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(COULD_NOT_BEGIN) from error
    chosen = [case for case in cases.CASES if case.group == arguments.group]
    outcomes = cases.run_cases(chosen, device, sizes)
    with arguments.out.open("w", encoding="utf-8", buffering=1) as file:
        for case in chosen:
            file.write(json.dumps({"case": case.name}) + "\n")
            file.write(json.dumps(asdict(next(outcomes))) + "\n")
