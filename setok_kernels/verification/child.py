"""The process that runs the cases, and the one that waits for it.

A kernel that leaves its memory makes every later call of its process fail, the reference's too, and
one that never ends cannot be stopped alone. A process of its own also has its own modes, precision,
random state and memory, so that nothing of the caller's is changed or counts.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from setok_kernels.verification.cases import CASES, REAL, Sizes, run_cases
from setok_kernels.verification.identity import Identity, identify
from setok_kernels.verification.verdict import Outcome, Verdict

# Of the whole: it should take less than 20 s, but a slow machine compiles long. A kernel that hangs
# is found out by it.
LIMIT_SECONDS = 300.0
# Exit status of a process that could not begin; what it wrote last to stderr says why.
COULD_NOT_BEGIN = 3
_LOG_CHARACTERS = 4000


def run_child(
    device: torch.device, identity: Identity, command: Sequence[str] | None = None
) -> Verdict:
    """Runs the cases in a process of their own, and waits for it.

    Args:
        device: a CUDA device, with its index.
        identity: that of the device.
        command: the process, in place of this very file; it takes the arguments of `main`.
    """
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="setok-") as folder:
        out, log = Path(folder) / "outcomes", Path(folder) / "log"
        problem, crashed = "", False
        try:
            problem, crashed = _wait_for(
                [*_command(command), "--device", str(device), "--key", identity.key, str(out)],
                folder,
                log,
            )
        except OSError as error:
            problem = f"the process could not be started: {error}"
        outcomes, unfinished = _read(out)
        said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if problem and unfinished:
        problem = f"{unfinished}: {problem}"
    if not problem and len(outcomes) != len(CASES):
        problem = f"{len(outcomes)} of {len(CASES)} cases were run"
    seconds = time.monotonic() - begin
    return Verdict(identity, outcomes, seconds, problem, crashed, said[-_LOG_CHARACTERS:])


def _command(command: Sequence[str] | None) -> list[str]:
    if command is not None:
        return list(command)
    if not sys.executable:
        raise OSError("this program has no Python executable (sys.executable is empty)")
    return [sys.executable, "-c", f"from {__name__} import main; main()"]


def _wait_for(command: list[str], folder: str, log: Path) -> tuple[str, bool]:
    """What went wrong, else "", and whether it is the kernels' fault."""
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
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            status = process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            return f"no end after {LIMIT_SECONDS:.0f} s", True
        finally:
            # Also where the caller is interrupted meanwhile.
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()
    if status == COULD_NOT_BEGIN:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"it could not begin: {lines[-1] if lines else 'no reason given'}", False
    if status:
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return f"the process ended with {how}", status < 0
    return "", False


def _read(path: Path) -> tuple[tuple[Outcome, ...], str]:
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
    return tuple(outcomes), begun


def main(argv: Sequence[str] | None = None, sizes: Sizes = REAL) -> None:
    """Runs the cases, and writes a line before and after each.

    Args:
        argv: the arguments; those of the process when None.
        sizes: of the tokens.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--key", required=True, help="what the identity of the device must have")
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
    with arguments.out.open("w", encoding="utf-8", buffering=1) as file:
        outcomes = run_cases(device, sizes)
        for case in CASES:
            file.write(json.dumps({"case": case.name}) + "\n")
            file.write(json.dumps(asdict(next(outcomes))) + "\n")
