"""Machine code of a kernel: how often each part of it runs, and how long a warp waits in it.

The assembler notes the line of PTX behind each machine instruction. So counts of the lines of PTX
that ran, which an emulator has, become counts of machine instructions.
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

# By the first part of the name of an instruction.
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
# One line of PTX makes one of these wherever it is copied to, so they say how often a block runs.
_ANCHORS = ("shuffle", "barrier", "shared", "load", "store", "tensor")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    Attributes:
        opcode: with its suffixes.
        operands: as text.
        line: of the PTX it comes from, None where there is none.
        stall: clocks until the next instruction of the warp may be issued.
        sets: scoreboards that are free again when its result or its operands are, as
            (number, whether of the result).
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
        """Its class, "other" where it only takes an issue slot."""
        return CLASSES.get(self.opcode.partition(".")[0], "other")


@dataclass
class Block:
    """Instructions that run one after the other.

    Attributes:
        instructions: of the block.
        off_path: runs only in cases that the compiler provides for and that do not occur, such as
            the slow path of a division.
    """

    instructions: list[Instruction] = field(default_factory=list)
    off_path: bool = False


@dataclass(frozen=True)
class Assembled:
    """A kernel's machine code.

    Attributes:
        blocks: in the order of their addresses.
        resources: that it takes, by `assembler.resources`.
    """

    blocks: list[Block]
    resources: dict[str, int]


def assemble(ptx: str, capability: int) -> Assembled:
    """Assembles a kernel and reads its machine code.

    Raises:
        RuntimeError: a tool is missing or refuses.
    """
    with tempfile.TemporaryDirectory() as scratch:
        cubin = Path(scratch, "kernel.cubin")
        said = run_ptxas(ptx, capability, cubin, "-lineinfo")
        text = run_tool("nvdisasm", "-gp", "-c", "-hex", cubin)
    return Assembled(parse(text), resources(said))


def parse(text: str) -> list[Block]:
    """Blocks of the output of `nvdisasm -gp -c -hex`."""
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
                # A shuffle once more, for a warp whose lanes are apart.
                blocks[-1].off_path = True
    return [b for b in blocks if any(i.opcode != "NOP" for i in b.instructions)]


def _instruction(found: re.Match, high: int, line: int | None) -> Instruction:
    # Bits 105 to 121 of an instruction, the same since Volta.
    write, read, wait = (high >> 46) & 7, (high >> 49) & 7, (high >> 52) & 63
    sets = tuple((n, made) for n, made in ((write, True), (read, False)) if n != 7)
    waits = tuple(n for n in range(6) if wait >> n & 1)
    return Instruction(found[3], found[4].strip(), line, (high >> 41) & 15, sets, waits)


def block_counts(blocks: list[Block], executed: dict[int, float]) -> list[float]:
    """How often each block runs, from how often each line of PTX did.

    A line that the assembler copied, as into the turns of an unrolled loop, counts in equal parts
    for each of its copies.
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
    """Machine instructions that ran, by class, and "issue", all of them."""
    found = Counter()
    for block, count in zip(blocks, counts, strict=True):
        for i in block.instructions:
            found[i.kind] += count
            found["issue"] += count
    return found


def chain(blocks: list[Block], counts: list[float], latency: Callable[[Instruction], int]) -> float:
    """Clocks that one warp takes for its part of the counts while nobody else is in its way.

    Instructions are issued in order, each after those it waits for, as the code itself says.
    Blocks in a row that run equally often are the body of one loop. It is followed by itself, so
    that what a loop asked for in the turn before is on its way. Copies by descriptors are taken to
    be asked for early enough: no wait for a memory barrier counts.
    """
    return sum(
        count * (_clocks(body * 2, latency) - _clocks(body, latency))
        for body, count in _bodies(blocks, counts)
    )


def _bodies(blocks: list[Block], counts: list[float]) -> list[tuple[list[Instruction], float]]:
    """Instructions of the blocks that ran, joined where they ran equally often, and how often."""
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
            # So many of the groups of copies may still be on their way.
            now = max([now, *copies[: len(copies) - int(found[1], 16)]])
        elif name == "HGMMA":
            products = now + latency(i)
        elif name == "WARPGROUP" and "DEPBAR" in i.opcode:
            now = max(now, products)
        elif name == "BAR":
            now += latency(i)
        for number, of_result in i.sets:
            # Operands are read long before the result is there.
            free[number] = max(free[number], now + (latency(i) if of_result else 12))
        now += max(1, i.stall)
    return now


def latency_of(table: dict[str, int], loads: str) -> Callable[[Instruction], int]:
    """Clocks of instructions by a `Machine.latency`; `loads` come from "l2" or "memory"."""
    kinds = {"load": loads, "store": loads}

    def latency(i: Instruction) -> int:
        name = i.opcode.partition(".")[0]
        if name in ("LDC", "LDCU", "S2R", "S2UR"):
            return table["constant"]
        return table[kinds.get(i.kind, i.kind) if i.kind != "fp64" else "other"]

    return latency
