"""The processes that run the cases, and the one that waits for them.

A kernel that leaves its memory makes every later call of its process fail, the reference's too, and
one that never ends cannot be stopped alone. A process of its own also has its own modes, precision,
random state and memory, so that nothing of the caller's is changed or counts. There is one for each
group of cases, because compiling the kernels takes most of the time.
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

# Of the whole: it should take less than 20 s, but a slow machine compiles long. A kernel that hangs
# is found out by it.
LIMIT_SECONDS = 300.0
# Exit status of a process that could not begin; what it wrote last to stderr says why.
COULD_NOT_BEGIN = 3
_LOG_CHARACTERS = 4000
# Signals of a program that is wrong. Others come from outside, as from a machine out of memory.
_FAULTS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGBUS}


def run_children(
    device: torch.device, identity: Identity, command: Sequence[str] | None = None
) -> Verdict:
    """Runs the cases in processes of their own, and waits for them.

    Args:
        device: a CUDA device, with its index.
        identity: that of the device.
        command: the process, in place of this very file; it takes the arguments of `main`.
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
            # Also where the caller is interrupted meanwhile.
            for part in parts:
                part.stop()
    outcomes = {outcome.case: outcome for found, *_ in ends for outcome in found}
    problem = "; ".join(dict.fromkeys(problem for _, problem, *_ in ends if problem))
    if not problem and len(outcomes) != len(cases.CASES):
        problem = f"{len(outcomes)} of {len(cases.CASES)} cases were run"
    return Verdict(
        identity,
        tuple(outcomes[case.name] for case in cases.CASES if case.name in outcomes),
        time.monotonic() - begin,
        problem,
        crashed=any(crashed for _, _, crashed, _ in ends),
        log="\n".join(said for *_, said in ends if said),
    )


def _command(command: Sequence[str] | None) -> list[str]:
    if command is not None:
        return list(command)
    if not sys.executable:
        raise OSError("this program has no Python executable (sys.executable is empty)")
    return [sys.executable, "-c", f"from {__name__} import main; main()"]


@dataclass(frozen=True)
class _Part:
    """A process that runs one group.

    Attributes:
        group: the group.
        process: the process.
        out: where it writes the outcomes.
        log: where its stdout and stderr go.
    """

    group: str
    process: subprocess.Popen
    out: Path
    log: Path

    @classmethod
    def start(cls, group: str, command: list[str], folder: Path) -> "_Part":
        out, log = folder / f"{group}.outcomes", folder / f"{group}.log"
        environment = os.environ | {
            # Whatever is found without an installation here is found there.
            "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in sys.path),
            # Compiled kernels, not interpreted ones; and no verification within the verification.
            "TRITON_INTERPRET": "0",
            "SETOK_VERIFY": "0",
        }
        with log.open("wb") as file:
            # An own folder, as Python looks for modules in the one that it is started in.
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
        """Outcomes, what went wrong (else ""), whether the kernels are to blame, and the log."""
        try:
            status = self.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = None
        self.stop()
        outcomes, begun = _read(self.out)
        said = self.log.read_text(encoding="utf-8", errors="replace").strip()[-_LOG_CHARACTERS:]
        if status == 0:
            return outcomes, "", False, said
        if status == COULD_NOT_BEGIN:
            last = (said.splitlines() or ["no reason given"])[-1]
            return outcomes, f"the process could not begin: {last}", False, said
        where = begun or f"group {self.group}"
        if status is None:
            return outcomes, f"{where}: no end after {LIMIT_SECONDS:.0f} s", True, said
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return outcomes, f"{where}: the process ended with {how}", -status in _FAULTS, said

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()


def _read(path: Path) -> tuple[list[Outcome], str]:
    """The outcomes that were written, and the case that was begun and has none."""
    outcomes, begun = [], ""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            fields = json.loads(line)
        except ValueError:
            # The process was stopped while it wrote.
            break
        if "state" in fields:
            outcomes.append(Outcome(**fields))
        begun = "" if "state" in fields else fields["case"]
    return outcomes, begun


def main(argv: Sequence[str] | None = None, sizes: Sizes = REAL) -> None:
    """Runs the cases of one group, and writes a line before and after each.

    Args:
        argv: the arguments; those of the process when None.
        sizes: of the tokens.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--key", required=True, help="what the identity of the device must have")
    parser.add_argument("--group", required=True)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args(argv)
    device = arguments.device
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
            # The context, for which there may be no memory, or no permission.
            torch.zeros(1, device=device).item()
        if identify(device).key != arguments.key:
            raise RuntimeError(f"{device} is another device, or has another driver or version here")
    except (RuntimeError, AssertionError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(COULD_NOT_BEGIN) from error
    chosen = [case for case in cases.CASES if case.group == arguments.group]
    outcomes = cases.run_cases(chosen, device, sizes)
    with arguments.out.open("w", encoding="utf-8", buffering=1) as file:
        for case in chosen:
            file.write(json.dumps({"case": case.name}) + "\n")
            file.write(json.dumps(asdict(next(outcomes))) + "\n")
