"""Run many random calls: each returns, or raises an error that names what does not fit.

    python -m setok_kernels.testing.fuzz --calls 20000 --seed 0

The calls run in a process of their own. When one kills it, by a signal or by a sanitizer, its seed
is reported and a new process goes on with the next.
"""

import argparse
import collections
import re
import subprocess
import sys

from setok_kernels import _native
from setok_kernels.testing.calls import Call, random_call

# Of public functions: "name: expected X, got Y".
_NAMED = re.compile(r"[A-Za-z_][\w.]*(\[.*?\])?: ")
# What torch says when it cannot have the memory that valid arguments ask for.
_NO_MEMORY = re.compile(r"allocate memory|Storage size calculation overflowed")
# The process that makes the calls.
COMMAND = (sys.executable, "-m", "setok_kernels.testing.fuzz")

_OF_OPERATIONS = (
    ValueError,
    TypeError,
    RuntimeError,
    IndexError,
    MemoryError,
    OverflowError,
)


def outcome(call: Call) -> tuple[str, str]:
    """What came of a call: "returned", "refused" or "failed", and the message."""
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
        return isinstance(error, _OF_OPERATIONS)
    if isinstance(error, RuntimeError) and str(error).startswith("backend="):
        return True
    return isinstance(error, ValueError | TypeError) and bool(_NAMED.match(str(error)))


def work(first: int, last: int) -> None:
    """Make the calls with the seeds from `first` up to `last`; a line before and after each."""
    for seed in range(first, last):
        print(f"call\t{seed}", flush=True)
        call = random_call(seed)
        print(f"name\t{call.name}({', '.join(call.spoiled)})", flush=True)
        kind, message = outcome(call)
        print(f"{kind}\t{message[:300]}", flush=True)


def fuzz(first: int, calls: int) -> tuple[collections.Counter, list[str]]:
    """Make so many calls in processes of their own.

    Returns:
        How often each outcome and message came, and a line for every failure.
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
    """The kind of call, and what the error names."""
    where = "operation" if name.startswith("ops.") else "public function"
    words = message.split(": ")
    return f"{where}: {': '.join(words[:2]) if _NAMED.match(': '.join(words[1:])) else words[0]}"


def main() -> int:
    """Print a summary; 1 when a call failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first call")
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
