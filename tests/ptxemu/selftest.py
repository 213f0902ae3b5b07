"""Self-test of the emulator on small kernels with known results and faults.

python -m ptxemu.selftest --arch 80 --mutations
"""

import argparse
import contextlib
import re
import sys
from collections.abc import Iterator

from ptxemu import driver

driver.prepare()

# After that, triton compiles.
from ptxemu import descriptor_cases, plain_cases
from ptxemu.engine import Options
from ptxemu.judge import Failed, clean

# Removed instructions, and the expected findings. Some are redundant, e.g. a barrier after the last
# use of shared memory: at least this fraction must be found.
MUTATIONS = (
    (
        "barrier",
        r"\bbar\.sync\s+0;",
        {
            "race-in-shared",
            "async-operand-overwritten",
            "async-copy-not-awaited",
            "mbarrier-misused",
        },
        0.5,
    ),
    ("wait for copies", r"\bcp\.async\.wait_group\s+\d+;", {"async-copy-not-awaited"}, 0.6),
    (
        "wait for wgmma",
        r"\bwgmma\.wait_group\.sync\.aligned\s+\d+;",
        {"wgmma-register-not-awaited", "async-operand-overwritten"},
        0.6,
    ),
    (
        "proxy fence",
        r"\bfence\.proxy\.async[.:\w]*;",
        {"note-no-proxy-fence", "no-proxy-fence"},
        0.6,
    ),
    ("wait for an mbarrier", r"@!complete bra\.uni waitLoop;", {"async-copy-not-awaited"}, 0.9),
    (
        "wait for a store of a tile",
        r"\bcp\.async\.bulk\.wait_group\.read\s+\d+;",
        {"async-copy-not-awaited"},
        0.9,
    ),
)
MUTATED = ("softmax 1024", "matmul", "transpose 64", "copy of tiles", "gram")


def right(arch: int) -> Iterator:
    """Return the cases that must run clean: names and functions of an emulator."""
    yield from plain_cases.right(arch)
    yield from descriptor_cases.right(arch)


def wrong(arch: int) -> Iterator:
    """Return the cases with a fault that must be found."""
    yield from plain_cases.wrong(arch)
    yield from descriptor_cases.wrong(arch)


def mutations(arch: int, every: int) -> Iterator[tuple[str, int, int, list[str], float]]:
    """Remove synchronisation from correct code, one instruction at a time."""
    cases = [(name, run) for name, run in right(arch) if name.startswith(MUTATED)][::every]
    for what, pattern, kinds, fraction in MUTATIONS:
        total, caught, missed = 0, 0, []
        for name, run in cases:
            with driver.emulated(arch) as e:
                seen = []
                e.edit = lambda ptx, seen=seen: seen.append(ptx) or ptx
                run(e)
                places = [m.span() for m in re.finditer(pattern, seen[0])]
                for i, (begin, end) in enumerate(places):
                    e.clear()
                    e.edit = lambda ptx, b=begin, t=end: ptx[:b] + ptx[t:]
                    with contextlib.suppress(Failed, RuntimeError):
                        run(e)
                    total += 1
                    if {f.kind for f in e.findings} & kinds:
                        caught += 1
                    else:
                        missed.append(f"{name} #{i}")
        yield what, total, caught, missed, fraction


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, default=80, choices=[80, 90])
    parser.add_argument("--only", default="", help="cases whose names begin with this")
    parser.add_argument("--quick", action="store_true", help="each fifth of the right cases")
    parser.add_argument(
        "--truncate", action="store_true", help="tensor cores cut off as hardware does"
    )
    parser.add_argument("--copies", default="random", choices=["random", "late", "early"])
    parser.add_argument(
        "--mutations", type=int, default=0, metavar="N", help="mutate each Nth case as well"
    )
    args = parser.parse_args()
    bad = 0
    options = Options(seed=1, truncate=args.truncate, copies=args.copies)
    for kind, cases in (("right", right), ("wrong", wrong)):
        every = 5 if args.quick and kind == "right" else 1
        chosen = [case for case in cases(args.arch) if case[0].startswith(args.only)]
        for name, run in chosen[::every]:
            with driver.emulated(args.arch, options) as e:
                try:
                    run(e)
                    if kind == "right":
                        clean(e)
                    said = "ok"
                except Failed as error:
                    said, bad = f"FAILED {error}", bad + 1
            print(f"{said:4} {kind}: {name}", flush=True)
    if args.mutations:
        for what, total, caught, missed, fraction in mutations(args.arch, args.mutations):
            few = caught < fraction * total
            bad += few
            said = "FAILED" if few else "ok"
            print(f"{said:4} {what} taken out: {caught} of {total} found", flush=True)
            if missed:
                print(f"       not: {', '.join(missed)}")
    print(f"sm_{args.arch}: {bad} failed" if bad else f"sm_{args.arch}: all right")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
