"""Parser from PTX text to the instructions of the emulator; it rejects unknown PTX."""

import re
from dataclasses import dataclass, field

import numpy as np

from ptxemu.build import opcodes
from ptxemu.ptx_arithmetic import Arithmetic
from ptxemu.ptx_memory import Memory
from ptxemu.ptx_types import NONE, PARAM_BASE, SHARED_BASE, UnknownPtx, size_of
from ptxemu.ptx_warps import Warps


@dataclass
class Program:
    """Parsed kernel.

    Attributes:
        name: name of the entry.
        code: (instructions, 16) int32, see `Ins` in core/launch.h.
        pool: lists of operands.
        consts: 32 copies of each constant.
        params: type and offset of each parameter.
        n_regs: number of 32-bit register slots of a warp.
        n_preds: number of predicates.
        text: text of each instruction.
        where: source file and line of each instruction, innermost first.
        ptx_line: PTX line of each instruction.
        num_warps: number of warps, from .reqntid.
        shared_bytes: size of its variables in shared memory.
    """

    name: str
    code: np.ndarray
    pool: np.ndarray
    consts: np.ndarray
    params: list[tuple[str, int]]
    param_bytes: int
    n_regs: int
    n_preds: int
    text: list[str]
    where: list[str]
    ptx_line: list[int]
    num_warps: int
    shared_bytes: int = 0
    labels: dict[str, int] = field(default_factory=dict)


@dataclass
class Scope:
    """Declarations of a brace scope that starts at row `first`."""

    first: int
    names: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)


# Register types.
REGISTERS = set(
    ["b16", "u16", "s16", "f16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64"]
)


class Parser(Arithmetic, Memory, Warps):
    """Parser of one kernel's PTX."""

    def __init__(self, ptx: str) -> None:
        self.ops = opcodes()
        self.registers, self.predicates = {}, {}
        self.widths = {}
        self.next_register = 0
        self.constants, self.const_words = {}, []
        self.pool, self.rows = [], []
        self.text, self.where, self.lines = [], [], []
        self.labels, self.params, self.param_offsets = {}, [], {}
        self.param_bytes = 0
        self.symbols, self.shared_bytes = {}, 0
        self.files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', ptx, re.MULTILINE))
        self.name, self.num_warps = "", 4
        self.scopes = []
        self._parse(ptx)

    # -- text

    def _parse(self, ptx: str) -> None:
        source, statement, first_line = "", "", 0
        in_body = False
        for number, raw in enumerate(ptx.splitlines(), 1):
            line, _, comment = raw.partition("//")
            line = line.strip()
            if line.startswith(".loc"):
                parts = line.split()
                at = self.files.get(parts[1], "?").rsplit("/", 1)[-1]
                source = comment.strip() or f"{at}:{parts[2]}:{parts[3]}"
                continue
            if line.startswith(".section"):
                break
            if not line:
                continue
            if not in_body:
                self._header(line)
                in_body = line == "{"
                continue
            while line:
                if not statement:
                    label = re.match(r"([$\w]+):\s*", line)
                    if label:
                        labels = self.scopes[-1].labels if self.scopes else self.labels
                        labels[label[1]] = len(self.rows)
                        line = line[label.end() :]
                        continue
                    if line[0] == "{":
                        self.scopes.append(Scope(first=len(self.rows)))
                        line = line[1:].strip()
                        continue
                    if line[0] == "}":
                        if self.scopes:
                            scope = self.scopes.pop()
                            self._resolve(scope.labels, scope.first)
                        line = line[1:].strip()
                        continue
                    first_line = number
                head, end, line = line.partition(";")
                statement = f"{statement} {head}".strip()
                line = line.strip()
                if end:
                    self._statement(statement, source, first_line)
                    statement = ""
        self._resolve(self.labels, 0)
        if lost := {row[12] for row in self.rows if isinstance(row[12], str)}:
            raise UnknownPtx(f"no label {lost}")

    def _resolve(self, labels: dict[str, int], first: int) -> None:
        for row in self.rows[first:]:
            if isinstance(row[12], str) and row[12] in labels:
                row[12] = labels[row[12]]

    def _header(self, line: str) -> None:
        if found := re.search(r"\.entry\s+(\w+)", line):
            self.name = found[1]
        if found := re.search(r"\.reqntid\s+(\d+)", line):
            self.num_warps = int(found[1]) // 32
        if found := re.match(r"\.param\s+\.align\s+(\d+)\s+\.b8\s+(\w+)\[(\d+)\],?$", line):
            align, size = int(found[1]), int(found[3])
            self.param_bytes = -(-self.param_bytes // align) * align
            self.param_offsets[found[2]] = self.param_bytes
            self.params.append((f"bytes{size}", self.param_bytes))
            self.param_bytes += size
        elif found := re.match(r"\.param\s+\.(\w+)\s+(?:.*\s)?(\w+?)(\[\d+\])?,?$", line):
            size = size_of(found[1])
            self.param_bytes = -(-self.param_bytes // size) * size
            self.param_offsets[found[2]] = self.param_bytes
            self.params.append((found[1], self.param_bytes))
            self.param_bytes += size
        if found := re.search(r"\.shared\s+\.align\s+\d+\s+\.b8\s+(\w+)\[\]", line):
            self.symbols[found[1]] = SHARED_BASE
        elif ".shared" in line:
            raise UnknownPtx(line)
        # Constants in .global memory, as of __nvvm_reflect, are refused where they are used.

    def _statement(self, text: str, source: str, line: int) -> None:
        if text.startswith("."):
            if found := re.match(r"\.reg\s+\.(\w+)\s+(.*)", text):
                for name in found[2].split(","):
                    self._declare(found[1], name.strip())
            elif found := re.match(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+(\w+)\[(\d+)\]$", text):
                align, size = int(found[1]), int(found[3])
                self.shared_bytes = -(-self.shared_bytes // align) * align
                self.symbols[found[2]] = SHARED_BASE + self.shared_bytes
                self.shared_bytes += size
            elif not text.startswith((".pragma", ".loc")):
                raise UnknownPtx(text)
            return
        guard, body = -1, text
        if found := re.match(r"@(!?)([%\w]+)\s+(.*)", text, re.DOTALL):
            guard, body = 2 * self.pred(found[2]) + (found[1] == "!"), found[3]
        opcode, _, rest = body.partition(" ")
        if "\t" in opcode:
            opcode, _, more = opcode.partition("\t")
            rest = f"{more} {rest}"
        operands = self._split(rest)
        before = len(self.rows)
        self.guard = guard
        try:
            self._instruction(opcode.strip(), operands)
        except (KeyError, IndexError, ValueError) as error:
            raise UnknownPtx(f"{text} ({type(error).__name__}: {error})") from error
        for _ in range(len(self.rows) - before):
            self.text.append(text)
            self.where.append(source)
            self.lines.append(line)

    @staticmethod
    def _split(rest: str) -> list[str]:
        out, depth, current = [], 0, ""
        for c in rest:
            if c in "{[(":
                depth += 1
            elif c in "}])":
                depth -= 1
            if c == "," and depth == 0:
                out.append(current.strip())
                current = ""
            else:
                current += c
        if current.strip():
            out.append(current.strip())
        return out

    # -- registers and constants

    def _declare(self, kind: str, name: str) -> None:
        found = re.match(r"([%\w]+)<(\d+)>", name)
        names = [f"{found[1]}{i}" for i in range(int(found[2]))] if found else [name]
        for n in names:
            # A name in braces denotes a different register than outside.
            if self.scopes:
                inner = f"{n}@{len(self.rows)}.{len(self.scopes)}"
                self.scopes[-1].names[n] = inner
                n = inner
            if kind == "pred":
                self.predicates[n] = len(self.predicates)
            elif kind in REGISTERS:
                self.registers[n] = self.next_register
                wide = size_of(kind) == 8
                self.widths[n] = size_of(kind)
                self.next_register += 64 if wide else 32
            else:
                raise UnknownPtx(f".reg .{kind} {name}")

    def _name(self, text: str) -> str:
        for scope in reversed(self.scopes):
            if text in scope.names:
                return scope.names[text]
        return text

    def pred(self, text: str) -> int:
        return self.predicates[self._name(text)]

    def pred2(self, text: str) -> int:
        """Return a predicate with its negation."""
        return 2 * self.pred(text.lstrip("!")) + text.startswith("!")

    def width(self, text: str) -> int:
        return self.widths[self._name(text)]

    def is_register(self, text: str) -> bool:
        return self._name(text) in self.registers

    def const(self, bits: int, size: int) -> int:
        key = (bits, size)
        if key not in self.constants:
            self.constants[key] = len(self.const_words)
            if size == 8:
                self.const_words += [bits & 0xFFFFFFFF, bits >> 32 & 0xFFFFFFFF] * 32
            else:
                self.const_words += [bits & 0xFFFFFFFF] * 32
        return ~self.constants[key]

    def val(self, text: str, size: int) -> int:
        """Return the slot of an operand of `size` bytes: a register or a constant."""
        name = self._name(text)
        if name in self.registers:
            have = self.widths[name]
            if (have == 8) != (size == 8):
                raise ValueError(f"{text} has {have} bytes, not {size}")
            return self.registers[name]
        if name in self.symbols:
            return self.const(self.symbols[name], size)
        if name in self.param_offsets:
            return self.const(PARAM_BASE + self.param_offsets[name], size)
        if found := re.match(r"0[fF]([0-9a-fA-F]{8})$", text):
            return self.const(int(found[1], 16), size)
        if found := re.match(r"0[dD]([0-9a-fA-F]{16})$", text):
            return self.const(int(found[1], 16), 8)
        number = int(re.sub(r"U$", "", text), 0)
        mask = (1 << (8 * max(size, 4))) - 1
        if size == 2:
            mask = 0xFFFF
        return self.const(number & mask, size)

    def dst(self, text: str, size: int) -> int:
        if text == "_":
            return NONE
        if not self.is_register(text):
            raise ValueError(f"{text} is no register")
        return self.val(text, size)

    def address(self, text: str) -> tuple[str, int]:
        found = re.match(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\w+))?\s*\]$", text)
        if not found:
            raise ValueError(f"address {text}")
        return found[1], int(found[2] or "0", 0)

    @staticmethod
    def vector(text: str) -> list[str]:
        if text.startswith("{"):
            return [t.strip() for t in text.strip("{} ").split(",")]
        return [text]

    def emit(self, op: str, a=(), nx=0, xs=None, imm=0, imm2=0, imm3=0, which=0xFF) -> None:
        a = list(a)
        # Bits of the operands whose registers must not belong to a pending product.
        bits = 0
        for i, v in enumerate(a):
            if isinstance(v, int) and v >= 0 and which >> i & 1:
                bits |= 1 << i
        xo = len(self.pool)
        if xs is not None:
            self.pool += xs
            nx = nx or len(xs)
        a += [NONE] * (8 - len(a))
        self.rows.append([self.ops[op], self.guard, *a, nx, xo, imm, imm2, bits, imm3])

    # -- instructions

    def _instruction(self, opcode: str, o: list[str]) -> None:
        parts = opcode.split(".")
        kind = parts[0]
        handler = getattr(self, f"_op_{kind}", None)
        if handler is None:
            raise UnknownPtx(f"{opcode} {', '.join(o)}")
        handler(opcode, parts[1:], o)

    def _unknown(self, opcode, o):
        raise UnknownPtx(f"{opcode} {', '.join(o)}")

    def program(self) -> Program:
        return Program(
            self.name,
            np.array(self.rows, dtype=np.int64).astype(np.int32),
            np.array(self.pool or [0], dtype=np.int32),
            np.array(self.const_words or [0], dtype=np.uint32),
            self.params,
            self.param_bytes,
            self.next_register,
            len(self.predicates),
            self.text,
            self.where,
            self.lines,
            self.num_warps,
            self.shared_bytes,
            self.labels,
        )


def entries(ptx: str) -> dict[str, str]:
    """Return the PTX of each kernel of a module, which `parse` takes, by its name."""
    header, *kernels = re.split(r"(?m)^(?=\.visible \.entry)", ptx)
    return {re.match(r"\.visible \.entry (\w+)", text)[1]: header + text for text in kernels}


def parse(ptx: str) -> Program:
    """Parse the single kernel in `ptx`.

    Raises:
        UnknownPtx: the emulator does not support an instruction.
    """
    return Parser(ptx).program()
