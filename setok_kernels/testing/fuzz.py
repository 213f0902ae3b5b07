"""Run many random calls: each must return, or raise an error with the argument's name.

    python -m setok_kernels.testing.fuzz --calls 20000 --seed 0

The calls run in a child process. If a call kills it (signal or sanitizer), its random seed is
reported, and a new process continues with the next.
"""

import argparse
import collections
import re
import subprocess
import sys

from setok_kernels import _native
from setok_kernels.testing.calls import Call, random_call

# Messages of public functions: "name: expected X, got Y".
_NAMED = re.compile(r"[A-Za-z_][\w.]*(\[.*?\])?: ")
# torch's messages when valid arguments need more memory than there is.
_NO_MEMORY = re.compile(r"allocate memory|Storage size calculation overflowed")
# Command of the child process.
COMMAND = (sys.executable, "-m", "setok_kernels.testing.fuzz")

_OPERATION_ERRORS = (
    ValueError,
    TypeError,
    RuntimeError,
    IndexError,
    MemoryError,
    OverflowError,
)


def outcome(call: Call) -> tuple[str, str]:
    """Run a call and return its outcome, "returned", "refused" or "failed", and the message."""
    try:
        call()
    except Exception as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return ("refused" if _is_refusal(call, error) else "failed"), message
    return "returned", ""


def _is_refusal(call: Call, error: Exception) -> bool:
    if not call.spoiled:
        return False
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return True
    if not call.public:
        return isinstance(error, _OPERATION_ERRORS)
    if isinstance(error, RuntimeError) and str(error).startswith("backend="):
        return True
    return isinstance(error, ValueError | TypeError) and bool(_NAMED.match(str(error)))


def work(first: int, last: int) -> None:
    """Run the calls with random seeds [`first`, `last`); print a line before and after each."""
    for seed in range(first, last):
        print(f"call\t{seed}", flush=True)
        call = random_call(seed)
        print(f"name\t{call.name}({', '.join(call.spoiled)})", flush=True)
        kind, message = outcome(call)
        print(f"{kind}\t{message[:300]}", flush=True)


def fuzz(first: int, calls: int) -> tuple[collections.Counter, list[str]]:
    """Run `calls` calls in child processes, from random seed `first` on.

    Returns:
        Counter of each outcome and message, and a line for each failure.
    """
    counts: collections.Counter = collections.Counter()
    failures, seed = [], first
    while seed < first + calls:
        left = str(first + calls - seed)
        command, name = [*COMMAND, "--work", "--seed", str(seed), "--calls", left], ""
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                kind, _, message = line.rstrip("\n").partition("\t")
                if kind == "call":
                    seed, name = int(message), ""
                elif kind == "name":
                    name = message
                else:
                    counts[kind, _prefix(name, message)] += 1
                    if kind == "failed":
                        failures.append(f"seed {seed}: {name}: {message}")
        if worker.returncode != 0:
            counts["died", f"exit code {worker.returncode}"] += 1
            failures.append(f"seed {seed}: {name}: the process ended with {worker.returncode}")
        seed += 1
    return counts, failures


def _prefix(name: str, message: str) -> str:
    """Return the kind of call, the error class and the argument in the message, if any."""
    where = "operation" if name.startswith("ops.") else "public function"
    parts = message.split(": ")
    return f"{where}: {': '.join(parts[:2]) if _NAMED.match(': '.join(parts[1:])) else parts[0]}"


def main() -> int:
    """Run the calls, print a summary, and return 1 if a call failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0, help="random seed of the first call")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.seed, options.seed + options.calls)
        return 0
    print(f"{_native.load()}, seeds from {options.seed}", flush=True)
    counts, failures = fuzz(options.seed, options.calls)
    totals: collections.Counter = collections.Counter()
    for (kind, _), count in counts.items():
        totals[kind] += count
    for (kind, message), count in sorted(counts.items()):
        print(f"{count:7}  {kind:9} {message}")
    print(
        f"{options.calls} calls: " + ", ".join(f"{n} {kind}" for kind, n in sorted(totals.items()))
    )
    for failure in failures:
        print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
