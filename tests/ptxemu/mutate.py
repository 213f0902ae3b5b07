"""Mutation test: remove barriers and waits of the kernels one at a time, and count detections."""

import random
import re

from ptxemu import driver
from ptxemu.cases import settings
from ptxemu.engine import key_of

SYNC = (
    r"(?:\bbar\.sync\s+0|\bcp\.async\.(?:bulk\.)?wait_group(?:\.read)?\s+\d+"
    r"|\bwgmma\.wait_group\.sync\.aligned\s+\d+|@!complete bra\.uni waitLoop);"
)


def mutate(chosen, arch, options, count, seed=0):
    """Remove `count` random barriers and waits that ran, one at a time.

    Some are redundant: their order holds anyway, or the protected loop has a single turn.
    """
    draw, total, noticed = random.Random(seed), 0, 0
    places = []
    with driver.emulated(arch, options) as emulator:
        emulator.keep_records = False
        for case in chosen:
            seen, lines = {}, {}
            emulator.edit = lambda ptx, seen=seen: seen.setdefault(ptx, ptx)

            def on_launch(name, grid, run, memories, scalars, lines=lines):
                ran = lines.setdefault(id(run.program), set())
                ran.update(
                    n for n, times in zip(run.program.ptx_line, run.executed, strict=True) if times
                )

            emulator.on_launch = on_launch
            with settings(case):
                case.call()
            for ptx in seen:
                entry, ran = re.search(r"\.entry\s+(\w+)", ptx)[1], lines[id(driver._parsed(ptx))]
                spans = [m.span() for m in re.finditer(SYNC, ptx)]
                places += [
                    (case, entry, ptx, s) for s in spans if ptx.count("\n", 0, s[0]) + 1 in ran
                ]
        emulator.on_launch = None
        clean = {key_of(f) for f in emulator.findings}
        for case, entry, ptx, (begin, end) in draw.sample(places, min(count, len(places))):
            emulator.clear()
            ran = []

            def edit(text, ptx=ptx, begin=begin, end=end, ran=ran):
                if text != ptx:
                    return text
                ran.append(1)
                return ptx[:begin] + ptx[end:]

            emulator.edit, wrong = edit, ""
            try:
                with settings(case):
                    case.call()
            except Exception as error:
                wrong = (
                    "wrong result" if isinstance(error, (AssertionError, ValueError)) else "stopped"
                )
            kinds = {f.kind for f in emulator.findings if not f.is_note and key_of(f) not in clean}
            total += 1
            noticed += bool(kinds or wrong)
            line = ptx.count("\n", 0, begin) + 1
            said = "found " if kinds else "missed"
            what = " ".join(ptx[begin:end].split())
            print(said, entry, f"ptx {line}", what, *sorted(kinds), wrong, flush=True)
    print(f"sm_{arch}: {noticed} of {total} noticed, of {len(places)} places")
