"""Machine code of a kernel: execution counts of its blocks, and waiting time of a warp.

The assembler records the PTX line of each machine instruction. So the emulator's counts of PTX
lines become counts of machine instructions.
"""

from __future__ import annotations

import math
import re
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from setok_bench.assembler import resources, run_ptxas, run_tool

_LINE = re.compile(r'//## File "\.nv_debug_ptx_txt", line (\d+)')
_CODE = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)(.*?);\s+/\* 0x(\w+) \*/"
)
_HIGH = re.compile(r"^\s+/\* 0x(\w{16}) \*/\s*$")
_LABEL = re.compile(r"^(\.L_x_\d+|\$[\w$]+):")
_GROUP = re.compile(r"SB0, 0x([0-9a-f]+)")

# Classes by the first part of an instruction's name.
CLASSES = {
    "SHFL": "shuffle",
    "REDUX": "shuffle",
    "MUFU": "special",
    "BAR": "barrier",
    **dict.fromkeys(("LDS", "STS", "LDSM", "STSM", "ATOMS"), "shared"),
    **dict.fromkeys(("LDG", "LDGSTS", "UBLKCP", "UTMALDG"), "load"),
    **dict.fromkeys(("STG", "ATOMG", "ATOM", "RED", "UTMASTG"), "store"),
    **dict.fromkeys(("HGMMA", "HMMA", "IGMMA", "QGMMA"), "tensor"),
    **dict.fromkeys(("DADD", "DMUL", "DFMA", "DSETP", "DMNMX"), "fp64"),
}
# Each copy of a PTX line has exactly one of these instructions, so they give a block's count.
_ANCHORS = ("shuffle", "barrier", "shared", "load", "store", "tensor")


@dataclass(frozen=True)
class Instruction:
    """A machine instruction.

    Attributes:
        opcode: name with its suffixes.
        operands: text of the operands.
        line: line of PTX that it comes from, or None.
        stall: clocks until the next instruction of the warp may be issued.
        sets: scoreboards that it releases, as (number, True for result or False for operands).
        waits: scoreboards that must be free before it is issued.
    """

    opcode: str
    operands: str
    line: int | None
    stall: int = 1
    sets: tuple[tuple[int, bool], ...] = ()
    waits: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        """Class of the instruction, "other" if it only takes an issue slot."""
        return CLASSES.get(self.opcode.partition(".")[0], "other")


@dataclass
class Block:
    """Basic block of instructions.

    Attributes:
        instructions: instructions in order.
        off_path: flag: the block never runs in practice, e.g. the slow path of a division.
    """

    instructions: list[Instruction] = field(default_factory=list)
    off_path: bool = False


@dataclass(frozen=True)
class Assembled:
    """Machine code of a kernel.

    Attributes:
        blocks: basic blocks in the order of their addresses.
        resources: registers, stack and spills, see `assembler.resources`.
    """

    blocks: list[Block]
    resources: dict[str, int]


def assemble(ptx: str, capability: int) -> Assembled:
    """Assemble a kernel and parse its machine code.

    Raises:
        RuntimeError: a tool is missing or fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        cubin = Path(scratch, "kernel.cubin")
        log = run_ptxas(ptx, capability, cubin, "-lineinfo")
        text = run_tool("nvdisasm", "-gp", "-c", "-hex", cubin)
    return Assembled(parse(text), resources(log))


def parse(text: str) -> list[Block]:
    """Parse the output of `nvdisasm -gp -c -hex` into blocks."""
    blocks, line, pending, routine = [Block()], None, None, False
    ended = False
    for row in text.splitlines():
        if found := _LINE.search(row):
            line = int(found[1])
        elif found := _LABEL.match(row.strip()):
            # Subroutines, such as that of a division, follow the kernel.
            routine = routine or found[1].startswith("$")
            blocks.append(Block(off_path=routine))
            ended = False
        elif found := _CODE.search(row):
            pending = found
        elif (found := _HIGH.match(row)) and pending:
            made = _instruction(pending, int(found[1], 16), line)
            pending = None
            if ended:
                blocks.append(Block(off_path=routine))
            blocks[-1].instructions.append(made)
            name = made.opcode.partition(".")[0]
            ended = name in ("BRA", "EXIT", "RET", "CALL")
            if name == "WARPSYNC" and "COLLECTIVE" in made.opcode:
                # Duplicate of a shuffle, for a diverged warp.
                blocks[-1].off_path = True
    return [b for b in blocks if any(i.opcode != "NOP" for i in b.instructions)]


def _instruction(found: re.Match, high: int, line: int | None) -> Instruction:
    # Bits 105 to 121 of an instruction, the same since Volta.
    write, read, wait = (high >> 46) & 7, (high >> 49) & 7, (high >> 52) & 63
    sets = tuple((n, made) for n, made in ((write, True), (read, False)) if n != 7)
    waits = tuple(n for n in range(6) if wait >> n & 1)
    return Instruction(found[3], found[4].strip(), line, (high >> 41) & 15, sets, waits)


def block_counts(blocks: list[Block], executed: dict[int, float]) -> list[float]:
    """Return the execution count of each block, from the counts of the PTX lines.

    The count of a line with several copies, e.g. in an unrolled loop, is divided equally.
    """
    copies = Counter(
        (i.line, i.opcode.partition(".")[0])
        for block in blocks
        if not block.off_path
        for i in block.instructions
    )
    counts = []
    for block in blocks:
        votes = defaultdict(list)
        for i in block.instructions:
            if not block.off_path and executed.get(i.line) is not None:
                part = executed[i.line] / copies[i.line, i.opcode.partition(".")[0]]
                votes[i.kind in _ANCHORS].append(part)
        best = votes[True] or votes[False]
        counts.append(statistics.median(best) if best else 0.0)
    return counts


def class_counts(blocks: Iterable[Block], counts: Iterable[float]) -> Counter:
    """Return the executed machine instructions by class, and their total as "issue"."""
    found = Counter()
    for block, count in zip(blocks, counts, strict=True):
        for i in block.instructions:
            found[i.kind] += count
            found["issue"] += count
    return found


def chain(blocks: list[Block], counts: list[float], latency: Callable[[Instruction], int]) -> float:
    """Return the clocks of one warp alone on the device.

    Instructions are issued in order, each after its scoreboards, as encoded in the machine code.
    Consecutive blocks with equal counts form one loop body. A body follows itself, so that loads of
    the previous turn are in flight. Descriptor copies count as issued early enough: waits for
    memory barriers are ignored.
    """
    return sum(
        count * (_clocks(body * 2, latency) - _clocks(body, latency))
        for body, count in _bodies(blocks, counts)
    )


def _bodies(blocks: list[Block], counts: list[float]) -> list[tuple[list[Instruction], float]]:
    """Return the executed blocks with their counts, joined if consecutive counts are equal."""
    found: list[tuple[list[Instruction], float]] = []
    for block, count in zip(blocks, counts, strict=True):
        if not count:
            continue
        if found and math.isclose(found[-1][1], count, rel_tol=1e-3):
            found[-1] = (found[-1][0] + block.instructions, count)
        else:
            found.append((block.instructions, count))
    return found


def _clocks(instructions: list[Instruction], latency: Callable[[Instruction], int]) -> float:
    now, free, copies, products = 0.0, [0.0] * 6, [0.0], 0.0
    latest = 0.0
    for i in instructions:
        now = max([now, *(free[n] for n in i.waits)])
        name = i.opcode.partition(".")[0]
        if name == "LDGSTS":
            latest = now + latency(i)
        elif name == "LDGDEPBAR":
            copies.append(latest)
        elif name == "DEPBAR" and (found := _GROUP.search(i.operands)):
            # The operand is the number of copy groups that may still be in flight.
            now = max([now, *copies[: len(copies) - int(found[1], 16)]])
        elif name == "HGMMA":
            products = now + latency(i)
        elif name == "WARPGROUP" and "DEPBAR" in i.opcode:
            now = max(now, products)
        elif name == "BAR":
            now += latency(i)
        for number, of_result in i.sets:
            # Operands are read long before the result is ready.
            free[number] = max(free[number], now + (latency(i) if of_result else 12))
        now += max(1, i.stall)
    return now


def latency_of(table: dict[str, int], loads: str) -> Callable[[Instruction], int]:
    """Return the latency function of a `Machine.latency`; `loads` come from "l2" or "memory".

    From "l1" come plain loads alone: asynchronous copies, stores and atomics go to L2.
    """
    far = "l2" if loads == "l1" else loads
    kinds = {"load": far, "store": far}

    def latency(i: Instruction) -> int:
        name = i.opcode.partition(".")[0]
        if name in ("LDC", "LDCU", "S2R", "S2UR"):
            return table["constant"]
        if name == "LDG":
            return table[loads]
        return table[kinds.get(i.kind, i.kind) if i.kind != "fp64" else "other"]

    return latency
