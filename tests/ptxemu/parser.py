"""PTX text to the instructions of the emulator. What it does not know it refuses."""

import re
import struct
from dataclasses import dataclass, field

import numpy as np

from ptxemu.build import opcodes

NONE = -(2**31)
TYPES = "u16 s16 u32 s32 u64 s64 f32 f64 f16 bf16 u8 s8 pred tf32".split()
TY = {name: i for i, name in enumerate(TYPES)} | {"b16": 0, "b32": 2, "b64": 4, "b8": 10}
BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}
COMPARISONS = "eq ne lt le gt ge equ neu ltu leu gtu geu num nan".split()
SREGS = {
    "%tid.x": 0, "%tid.y": 1, "%tid.z": 2, "%ctaid.x": 3, "%ctaid.y": 4, "%ctaid.z": 5,
    "%ntid.x": 6, "%nctaid.x": 7, "%nctaid.y": 8, "%nctaid.z": 9, "%laneid": 10, "%warpid": 11,
    "%ntid.y": 12, "%ntid.z": 12,
}  # fmt: skip
ROUNDINGS = {"rn": 1, "rz": 2, "rm": 3, "rp": 4, "rni": 5, "rzi": 6, "rmi": 7, "rpi": 8, "rna": 9}
# Where dynamic shared memory starts: as far as swizzles look, a multiple of what hardware has.
SHARED_BASE = 1024
# Where the parameters lie among generic addresses: below all tensors.
PARAM_BASE = 1 << 36


class UnknownPtx(Exception):
    """The emulator has no such instruction."""


def size_of(type_name: str) -> int:
    """Bytes of a value of a type."""
    return BYTES[re.sub(r"\D", "", type_name)]


@dataclass
class Program:
    """One kernel.

    Attributes:
        name: of the entry.
        code: (instructions, 16) int32, see `Ins` in core.cpp.
        pool: lists of operands.
        consts: 32 copies of each constant.
        params: type and offset of each parameter.
        n_regs: 32-bit slots of a warp's registers.
        n_preds: predicates.
        text: of each instruction.
        where: source file and line of each instruction, innermost first.
        ptx_line: of each instruction.
        num_warps: from .reqntid.
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
    labels: dict[str, int] = field(default_factory=dict)


@dataclass
class Scope:
    """What is declared between two braces, which begin at row `first`."""

    first: int
    names: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)


class Parser:
    """Of one kernel's PTX."""

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
        self.symbols = {}
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
            # A name in braces is another register than one outside.
            if self.scopes:
                inner = f"{n}@{len(self.rows)}.{len(self.scopes)}"
                self.scopes[-1].names[n] = inner
                n = inner
            if kind == "pred":
                self.predicates[n] = len(self.predicates)
            elif kind in ("b16", "b32", "f32", "u32", "s32", "u16", "s16", "f16", "b64", "u64", "s64", "f64"):
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
        """With its negation."""
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
        """Where an operand of `size` bytes lies: a register, or a constant."""
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
        # Which operands are registers of which a pending product must not be part.
        bits = 0
        for i, v in enumerate(a):
            if isinstance(v, int) and v >= 0 and which >> i & 1:
                bits |= 1 << i
        xo = len(self.pool)
        if xs is not None:
            self.pool += xs
            nx = nx or len(xs)
        a += [NONE] * (8 - len(a))
        self.rows.append([self.ops[op], self.guard, *a, nx, xo, imm, imm2, bits << 24, imm3])

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

    def _op_bra(self, opcode, q, o):
        self.emit("BRA", imm=o[0])

    def _op_ret(self, opcode, q, o):
        self.emit("RET")

    def _op_exit(self, opcode, q, o):
        self.emit("RET")

    def _op_trap(self, opcode, q, o):
        self.emit("TRAP")

    def _op_bar(self, opcode, q, o):
        if q[0] == "warp":
            self.emit("BAR_WARP")
        elif q == ["sync"] and o == ["0"]:
            self.emit("BAR")
        else:
            self._unknown(opcode, o)

    def _op_barrier(self, opcode, q, o):
        if q in (["sync"], ["sync", "aligned"], ["cta", "sync", "aligned"]) and o == ["0"]:
            self.emit("BAR")
        else:
            self._unknown(opcode, o)

    def _op_fence(self, opcode, q, o):
        if q[0] == "proxy" and (q[1] == "async" or q[1] == "tensormap::generic"):
            self.emit("FENCE_PROXY", imm=int(q[1] == "async"))
        elif q[0] == "proxy":
            self._unknown(opcode, o)
        else:
            self.emit("FENCE")

    def _op_membar(self, opcode, q, o):
        self.emit("FENCE")

    def _op_griddepcontrol(self, opcode, q, o):
        self.emit("NOP")

    def _op_ld(self, opcode, q, o):
        q = [x for x in q if x not in ("weak", "relaxed", "gpu", "cta", "volatile", "nc")]
        q = [x for x in q if not x.startswith(("L1::", "L2::"))]
        space, q = q[0], [x for x in q[1:] if not x.startswith("L") and x not in ("ca", "cg", "cs", "cv", "lu")]
        if q and q[0] == "cluster" or "cta" in opcode.split("::"):
            self._unknown(opcode, o)
        size = size_of(q[-1])
        names = self.vector(o[0])
        if (int(q[0][1:]) if q[0].startswith("v") else 1) != len(names):
            self._unknown(opcode, o)
        first = next((n for n in names if n != "_"), None)
        wide = self.width(first) if first else 4
        flags = size | (0x100 if q[-1][0] == "s" else 0)
        flags |= 0x200 if wide == 8 else 0x400 if wide == 2 else 0
        base, offset = self.address(o[1])
        if space == "param":
            if len(names) != 1:
                self._unknown(opcode, o)
            self.emit("LDPARAM", [self.dst(names[0], wide)], imm=flags, imm2=self.param_offsets[base] + offset)
            return
        xs = [self.dst(n, wide) for n in names]
        if space == "global":
            self.emit("LD_GLOBAL", [self.val(base, 8), offset], xs=xs, imm=flags, which=1)
        elif space == "shared":
            at = 8 if self.is_register(base) and self.width(base) == 8 else 4
            self.emit("LD_SHARED", [self.val(base, at), offset], xs=xs, imm=flags | (0x800 if at == 8 else 0), which=1)
        else:
            self._unknown(opcode, o)

    def _op_st(self, opcode, q, o):
        q = [x for x in q if x not in ("weak", "relaxed", "gpu", "cta", "volatile", "wb", "wt", "cs", "cg")]
        q = [x for x in q if not x.startswith(("L1::", "L2::"))]
        space, size = q[0], size_of(q[-1])
        names = self.vector(o[1])
        if (int(q[1][1:]) if q[1].startswith("v") else 1) != len(names):
            self._unknown(opcode, o)
        xs = []
        for n in names:
            wide = self.width(n) if self.is_register(n) else max(size, 4)
            xs.append(self.val(n, 8 if wide == 8 else 4))
        base, offset = self.address(o[0])
        if space == "global":
            self.emit("ST_GLOBAL", [self.val(base, 8), offset], xs=xs, imm=size, which=1)
        elif space == "shared":
            at = 8 if self.is_register(base) and self.width(base) == 8 else 4
            self.emit("ST_SHARED", [self.val(base, at), offset], xs=xs, imm=size | (0x800 if at == 8 else 0), which=1)
        else:
            self._unknown(opcode, o)

    def _op_atom(self, opcode, q, o):
        self._atomic(opcode, q, o, True)

    def _op_red(self, opcode, q, o):
        self._atomic(opcode, q, ["_", *o], False)

    def _atomic(self, opcode, q, o, returns):
        q = [x for x in q if x not in ("relaxed", "acquire", "release", "acq_rel", "gpu", "cta", "sys")]
        space, what, ty = q
        code = {"add": 0, "max": 1, "min": 2, "exch": 3, "cas": 4, "and": 5, "or": 6, "xor": 7}[what]
        if space != "global" or ty not in ("u32", "s32", "b32", "u64", "s64", "b64", "f32", "f64"):
            self._unknown(opcode, o)
        size = size_of(ty)
        base, offset = self.address(o[1])
        a = [self.dst(o[0], size), self.val(base, 8), offset, self.val(o[2], size)]
        a.append(self.val(o[3], size) if what == "cas" else NONE)
        self.emit("ATOM_GLOBAL", a, imm=TY[ty], imm2=code, which=0b11011)

    def _op_mov(self, opcode, q, o):
        ty = q[0]
        if ty == "pred":
            if o[1] in self.predicates or self._name(o[1]) in self.predicates:
                self.emit("MOVP", [self.pred(o[0]), self.pred(o[1])], which=0)
            else:
                self.emit("MOVP_IMM", [self.pred(o[0])], imm=int(int(o[1], 0) != 0), which=0)
            return
        size = size_of(ty)
        if o[0].startswith("{") or o[1].startswith("{"):
            packing = o[1].startswith("{")
            parts, whole = (self.vector(o[1]), o[0]) if packing else (self.vector(o[0]), o[1])
            inner = size // len(parts)
            shape = {(4, 2): "16", (8, 4): "32", (8, 2): "16_64"}[(size, inner)]
            name = ("PACK" if packing else "UNPACK") + shape
            xs = [NONE if p == "_" else self.val(p, inner if inner == 8 else 4) for p in parts]
            self.emit(name, [self.val(whole, size)], xs=xs)
            return
        if o[1] in SREGS:
            self.emit("SREG", [self.dst(o[0], 4)], imm=SREGS[o[1]])
        elif size == 8:
            self.emit("MOV64", [self.dst(o[0], 8), self.val(o[1], 8)])
        else:
            self.emit("MOV32", [self.dst(o[0], 4), self.val(o[1], size)])

    def _binary(self, name, size, o, imm=0):
        self.emit(name, [self.dst(o[0], size), self.val(o[1], size), self.val(o[2], size)], imm=imm)

    def _arith(self, word, opcode, q, o):
        """add, sub, mul of floats; add and sub of integers; min and max."""
        ty = q[-1]
        flags = q[:-1]
        if ty in ("f32", "f64"):
            if not set(flags) <= {"rn", "NaN"}:
                self._unknown(opcode, o)
            self._binary(f"{word}_{ty.upper()}", size_of(ty), o, imm=int("NaN" in flags))
        elif ty in ("f16", "bf16", "f16x2", "bf16x2"):
            if not set(flags) <= {"rn", "NaN"}:
                self._unknown(opcode, o)
            name = f"{word}_H2" if ty.endswith("x2") else f"{word}_H"
            self._binary(name, 4, o, imm=int(ty.startswith("bf16")) | 2 * ("NaN" in flags))
        elif flags:
            self._unknown(opcode, o)
        elif word in ("MIN", "MAX"):
            self._binary(f"{word}_{ty.upper()}", size_of(ty), o)
        else:
            self._binary(f"{word}{8 * size_of(ty)}", size_of(ty), o)

    def _op_add(self, opcode, q, o):
        self._arith("ADD", opcode, q, o)

    def _op_sub(self, opcode, q, o):
        self._arith("SUB", opcode, q, o)

    def _op_min(self, opcode, q, o):
        self._arith("MIN", opcode, q, o)

    def _op_max(self, opcode, q, o):
        self._arith("MAX", opcode, q, o)

    def _op_mul(self, opcode, q, o):
        ty = q[-1]
        if q[0] == "lo":
            self._binary(f"MULLO{8 * size_of(ty)}", size_of(ty), o)
        elif q[0] == "hi":
            self._binary(f"MULHI_{ty.upper()}", size_of(ty), o)
        elif q[0] == "wide":
            size = size_of(ty)
            self.emit(f"MULW_{ty.upper()}", [self.dst(o[0], 2 * size), self.val(o[1], size), self.val(o[2], size)])
        else:
            self._arith("MUL", opcode, q, o)

    def _op_mad(self, opcode, q, o):
        ty, size = q[-1], size_of(q[-1])
        if q[0] == "lo":
            self.emit(f"MADLO{8 * size}", [self.dst(o[0], size), *(self.val(x, size) for x in o[1:])])
        elif q[0] == "wide":
            a = [self.dst(o[0], 8), self.val(o[1], 4), self.val(o[2], 4), self.val(o[3], 8)]
            self.emit(f"MADW_{ty.upper()}", a)
        else:
            self._unknown(opcode, o)

    def _op_fma(self, opcode, q, o):
        if q[0] != "rn" or len(q) != 2:
            self._unknown(opcode, o)
        ty = q[1]
        name = {"f32": "FMA_F32", "f64": "FMA_F64"}.get(ty) or ("FMA_H2" if ty.endswith("x2") else "FMA_H")
        size = 8 if ty == "f64" else 4
        a = [self.dst(o[0], size), *(self.val(x, size) for x in o[1:])]
        self.emit(name, a, imm=int(ty.startswith("bf16")))

    def _op_div(self, opcode, q, o):
        if q == ["full", "f32"]:
            self._binary("DIV_FULL_F32", 4, o)
        elif q == ["rn", "f32"]:
            self._binary("DIV_RN_F32", 4, o)
        elif q == ["rn", "f64"]:
            self._binary("DIV_F64", 8, o)
        elif len(q) == 1 and q[0][0] in "su":
            self._binary(f"DIV_{q[0].upper()}", size_of(q[0]), o)
        else:
            self._unknown(opcode, o)

    def _op_rem(self, opcode, q, o):
        self._binary(f"REM_{q[0].upper()}", size_of(q[0]), o)

    def _unary(self, name, size, o, imm=0):
        self.emit(name, [self.dst(o[0], size), self.val(o[1], size)], imm=imm)

    def _op_neg(self, opcode, q, o):
        ty = q[-1]
        if ty in ("f32", "f64"):
            self._unary(f"NEG_{ty.upper()}", size_of(ty), o)
        elif "f16" in ty:
            self._unary("NEG_H2" if ty.endswith("x2") else "NEG_H", 4, o)
        else:
            self._unary(f"NEG{8 * size_of(ty)}", size_of(ty), o)

    def _op_abs(self, opcode, q, o):
        ty = q[-1]
        if ty in ("f32", "f64", "s32", "s64") and len(q) == 1:
            self._unary(f"ABS_{ty.upper()}", size_of(ty), o)
        elif "f16" in ty:
            self._unary("ABS_H2" if ty.endswith("x2") else "ABS_H", 4, o)
        else:
            self._unknown(opcode, o)

    def _op_not(self, opcode, q, o):
        if q[0] == "pred":
            self.emit("NOTP", [self.pred(o[0]), self.pred(o[1])], which=0)
        else:
            self._unary(f"NOT{8 * size_of(q[0])}", size_of(q[0]), o)

    def _logic(self, word, q, o):
        if q[0] == "pred":
            self.emit(f"{word}P", [self.pred(x) for x in o], which=0)
        else:
            self._binary(f"{word}{8 * size_of(q[0])}", size_of(q[0]), o)

    def _op_and(self, opcode, q, o):
        self._logic("AND", q, o)

    def _op_or(self, opcode, q, o):
        self._logic("OR", q, o)

    def _op_xor(self, opcode, q, o):
        self._logic("XOR", q, o)

    def _op_shl(self, opcode, q, o):
        size = size_of(q[0])
        self.emit(f"SHL{8 * size}", [self.dst(o[0], size), self.val(o[1], size), self.val(o[2], 4)])

    def _op_shr(self, opcode, q, o):
        size = size_of(q[0])
        sign = "S" if q[0][0] == "s" else "U"
        self.emit(f"SHR_{sign}{8 * size}", [self.dst(o[0], size), self.val(o[1], size), self.val(o[2], 4)])

    def _op_shf(self, opcode, q, o):
        name = {"l": "SHF_L", "r": "SHF_R"}[q[0]]
        self.emit(name, [self.dst(o[0], 4), *(self.val(x, 4) for x in o[1:])], imm=int(q[1] == "wrap"))

    def _op_bfe(self, opcode, q, o):
        self.emit(f"BFE_{q[0].upper()}", [self.dst(o[0], 4), *(self.val(x, 4) for x in o[1:])])

    def _op_bfi(self, opcode, q, o):
        if q != ["b32"]:
            self._unknown(opcode, o)
        self.emit("BFI32", [self.dst(o[0], 4), *(self.val(x, 4) for x in o[1:])])

    def _op_prmt(self, opcode, q, o):
        if q != ["b32"]:
            self._unknown(opcode, o)
        self.emit("PRMT", [self.dst(o[0], 4), *(self.val(x, 4) for x in o[1:])])

    def _op_lop3(self, opcode, q, o):
        if q != ["b32"]:
            self._unknown(opcode, o)
        self.emit("LOP3", [self.dst(o[0], 4), *(self.val(x, 4) for x in o[1:4])], imm=int(o[4], 0))

    def _op_popc(self, opcode, q, o):
        if q != ["b32"]:
            self._unknown(opcode, o)
        self._unary("POPC32", 4, o)

    def _op_clz(self, opcode, q, o):
        if q != ["b32"]:
            self._unknown(opcode, o)
        self._unary("CLZ32", 4, o)

    def _op_brev(self, opcode, q, o):
        if q != ["b32"]:
            self._unknown(opcode, o)
        self._unary("BREV32", 4, o)

    def _op_bfind(self, opcode, q, o):
        if q != ["u32"]:
            self._unknown(opcode, o)
        self._unary("BFIND_U32", 4, o)

    def _op_selp(self, opcode, q, o):
        size = size_of(q[0])
        name = "SELP64" if size == 8 else "SELP32"
        self.emit(name, [self.dst(o[0], size), self.val(o[1], size), self.val(o[2], size), self.pred(o[3])], which=7)

    def _op_setp(self, opcode, q, o):
        cmp, ty = q[0], q[-1]
        if "ftz" in q:
            self._unknown(opcode, o)
        combine = {"and": 1, "or": 2, "xor": 3}[q[1]] if len(q) == 3 else 0
        if ty[0] in "us" or ty[0] == "b" and ty != "bf16":
            # Unsigned comparisons have names of their own.
            same = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
            cmp = same.get(cmp, cmp)
        outs = [x.strip() for x in o[0].split("|")]
        size = size_of(ty)
        a = [NONE if outs[0] == "_" else self.pred(outs[0])]
        a += [self.val(o[1], size), self.val(o[2], size)]
        a.append(self.pred(outs[1]) if len(outs) > 1 else NONE)
        a.append(self.pred2(o[3]) if combine else NONE)
        self.emit("SETP", a, imm=TY[ty], imm2=COMPARISONS.index(cmp), imm3=combine, which=0b110)

    def _op_cvt(self, opcode, q, o):
        mode = flags = 0
        types = []
        for x in q:
            if x in ROUNDINGS:
                mode = ROUNDINGS[x]
            elif x == "sat":
                flags |= 1
            elif x == "ftz":
                flags |= 2
            elif x == "relu":
                flags |= 4
            elif x in TY or x in ("bf16x2", "f16x2"):
                types.append(x)
            else:
                self._unknown(opcode, o)
        to, source = types
        if to in ("bf16x2", "f16x2"):
            if source != "f32" or flags or mode != 1:
                self._unknown(opcode, o)
            a = [self.dst(o[0], 4), self.val(o[1], 4), self.val(o[2], 4)]
            self.emit("CVT_PACK_H2", a, imm=int(to == "bf16x2"))
            return
        d_width = self.width(o[0])
        x_width = self.width(o[1]) if self.is_register(o[1]) else size_of(source)
        widths = (1 if d_width == 8 else 0) | (2 if x_width == 8 else 0) | (4 if d_width == 2 else 0)
        a = [self.dst(o[0], d_width), self.val(o[1], x_width)]
        # nx holds the widths of the registers here.
        self.emit("CVT", a, nx=widths, imm=TY[to] | TY[source] << 8, imm2=mode, imm3=flags)

    def _approx(self, opcode, q, o, name):
        if q[0] != "approx" or q[-1] != "f32":
            self._unknown(opcode, o)
        self._unary(name, 4, o, imm=int("ftz" in q))

    def _op_ex2(self, opcode, q, o):
        self._approx(opcode, q, o, "EX2_F32")

    def _op_lg2(self, opcode, q, o):
        self._approx(opcode, q, o, "LG2_F32")

    def _op_rsqrt(self, opcode, q, o):
        self._approx(opcode, q, o, "RSQRT_APPROX_F32")

    def _op_sin(self, opcode, q, o):
        self._approx(opcode, q, o, "SIN_F32")

    def _op_cos(self, opcode, q, o):
        self._approx(opcode, q, o, "COS_F32")

    def _op_tanh(self, opcode, q, o):
        self._approx(opcode, q, o, "TANH_F32")

    def _op_sqrt(self, opcode, q, o):
        if q == ["rn", "f32"]:
            self._unary("SQRT_RN_F32", 4, o)
        elif q == ["rn", "f64"]:
            self._unary("SQRT_F64", 8, o)
        else:
            self._approx(opcode, q, o, "SQRT_APPROX_F32")

    def _op_rcp(self, opcode, q, o):
        if q == ["rn", "f32"]:
            self._unary("RCP_RN_F32", 4, o)
        elif q == ["rn", "f64"]:
            self._unary("RCP_F64", 8, o)
        else:
            self._approx(opcode, q, o, "RCP_APPROX_F32")

    def _op_shfl(self, opcode, q, o):
        if q[0] != "sync" or q[2] != "b32":
            self._unknown(opcode, o)
        mode = {"idx": 0, "up": 1, "down": 2, "bfly": 3}[q[1]]
        outs = [x.strip() for x in o[0].split("|")]
        a = [self.dst(outs[0], 4), *(self.val(x, 4) for x in o[1:5])]
        self.emit("SHFL", a, imm=mode, imm2=self.pred(outs[1]) if len(outs) > 1 else -1)

    def _op_vote(self, opcode, q, o):
        mode = {"ballot": 0, "any": 1, "all": 2, "uni": 3}[q[1]]
        d = self.dst(o[0], 4) if mode == 0 else self.pred(o[0])
        self.emit("VOTE", [d, self.pred2(o[1]), self.val(o[2], 4)], imm=mode, which=0b101 if mode == 0 else 0b100)

    def _op_activemask(self, opcode, q, o):
        self.emit("ACTIVEMASK", [self.dst(o[0], 4)])

    def _op_redux(self, opcode, q, o):
        code = {"add": 0, "min": 1, "max": 2, "and": 3, "or": 4, "xor": 5}[q[1]]
        if q[-1] not in ("s32", "u32", "b32", "f32") or "NaN" in q or "abs" in q:
            self._unknown(opcode, o)
        self.emit("REDUX", [self.dst(o[0], 4), self.val(o[1], 4), self.val(o[2], 4)], imm=code, imm2=TY[q[-1]])

    def _op_elect(self, opcode, q, o):
        d, p = (x.strip() for x in o[0].split("|"))
        self.emit("ELECT", [self.dst(d, 4), self.pred(p)], which=1)

    def _op_ldmatrix(self, opcode, q, o):
        self._matrix("LDMATRIX", opcode, q, o[0], o[1])

    def _op_stmatrix(self, opcode, q, o):
        self._matrix("STMATRIX", opcode, q, o[1], o[0])

    def _matrix(self, name, opcode, q, registers, place):
        if "m8n8" not in q or q[-1] != "b16":
            self._unknown(opcode, [registers])
        n = {"x1": 1, "x2": 2, "x4": 4}[next(x for x in q if re.match(r"x\d$", x))]
        xs = [self.val(x, 4) for x in self.vector(registers)]
        if len(xs) != n:
            self._unknown(opcode, [registers])
        base, offset = self.address(place)
        self.emit(name, [self.val(base, 4), offset], xs=xs, imm=int("trans" in q), which=1)

    def _op_cp(self, opcode, q, o):
        if q[:2] == ["async", "commit_group"]:
            self.emit("CP_COMMIT")
        elif q[:2] == ["async", "wait_group"]:
            self.emit("CP_WAIT", imm=int(o[0], 0))
        elif q[:2] == ["async", "wait_all"]:
            self.emit("CP_WAIT", imm=-1)
        elif q[0] == "async" and q[1] in ("ca", "cg") and q[2] == "shared" and "global" in q:
            to, to_offset = self.address(o[0])
            source, offset = self.address(o[1])
            given = self.val(o[3], 4) if len(o) > 3 else NONE
            a = [self.val(to, 4), to_offset, self.val(source, 8), offset, given]
            self.emit("CP_ASYNC", a, imm=int(o[2], 0), which=0b10101)
        elif q[:2] == ["async", "bulk"]:
            self._bulk(opcode, q[2:], o)
        else:
            self._unknown(opcode, o)

    def _bulk(self, opcode, q, o):
        """Tiles between tensors and shared memory."""
        if q == ["commit_group"]:
            self.emit("BULK_COMMIT")
            return
        if q in (["wait_group"], ["wait_group", "read"]):
            self.emit("BULK_WAIT", imm=int(o[0], 0), imm2=int("read" in q))
            return
        if q[0] != "tensor":
            self._unknown(opcode, o)
        rank, how = int(q[1][0]), [x for x in q[2:] if x not in ("tile", "L2::cache_hint")]
        if how in ([f"shared::{x}", "global", "mbarrier::complete_tx::bytes"] for x in ("cta", "cluster")):
            name, to, source = "BULK_LOAD", o[0], o[1]
            barrier, offset = self.address(o[2])
        elif how == ["global", "shared::cta", "bulk_group"]:
            name, to, source = "BULK_STORE", o[1], o[0]
            barrier = None
        else:
            self._unknown(opcode, o)
        base, coordinates = re.match(r"\[\s*([%\w]+)\s*,\s*(\{.*\})\s*\]$", source).groups()
        xs = [self.val(x, 4) for x in self.vector(coordinates)]
        if len(xs) != rank:
            self._unknown(opcode, o)
        shared, shared_offset = self.address(to)
        a = [self.val(shared, 4), shared_offset, self.val(base, 8)]
        a += [self.val(barrier, 4), offset] if barrier else []
        self.emit(name, a, xs=xs, imm=rank, which=0b1101)

    def _op_mbarrier(self, opcode, q, o):
        q = [x for x in q if x not in ("relaxed", "acquire", "release", "cta", "cluster")]
        where = [i for i, x in enumerate(q) if x in ("shared", "shared::cta")]
        if len(where) != 1 or q[where[0] :] != [q[where[0]], "b64"]:
            self._unknown(opcode, o)
        what = ".".join(q[: where[0]])
        if what in ("try_wait.parity", "test_wait.parity"):
            base, offset = self.address(o[1])
            a = [self.pred(o[0]), self.val(base, 4), offset, self.val(o[2], 4)]
            self.emit("MBAR_WAIT", a, imm=int(what[1] == "r"), which=0b1010)
            return
        if what.startswith("arrive") and o.pop(0) != "_":
            # The token of an arrival, which only other forms of the wait take.
            self._unknown(opcode, o)
        base, offset = self.address(o[0])
        a = [self.val(base, 4), offset, self.val(o[1] if len(o) > 1 else "1", 4)]
        name, arrives, expects = {
            "init": ("MBAR_INIT", 0, 0),
            "inval": ("MBAR_INVAL", 0, 0),
            "arrive": ("MBAR_ARRIVE", 1, 0),
            "arrive.expect_tx": ("MBAR_ARRIVE", 1, 1),
            "expect_tx": ("MBAR_ARRIVE", 0, 1),
        }[what]
        self.emit(name, a, imm=arrives, imm2=expects, which=0b101)

    def _op_tensormap(self, opcode, q, o):
        if q[:2] == ["replace", "tile"] and q[3] == "shared::cta" and q[4] == "b1024":
            base, offset = self.address(o[0])
            ordinal = int(o[1], 0) if len(o) == 3 else 0
            field = "global_address rank box_dim global_dim global_stride element_stride elemtype interleave_layout swizzle_mode fill_mode".split().index(q[2])
            value = self.val(o[-1], size_of(q[-1]))
            wide = self.width(base) == 8
            a = [self.val(base, 8 if wide else 4), offset, value]
            self.emit("MAP_REPLACE", a, imm=field, imm2=ordinal, imm3=int(wide), which=0b101)
        elif q[:3] == ["cp_fenceproxy", "global", "shared::cta"]:
            (to, to_offset), (source, offset) = self.address(o[0]), self.address(o[1])
            if int(o[2], 0) != 128 or self.width(source) != 8:
                self._unknown(opcode, o)
            a = [self.val(to, 8), to_offset, self.val(source, 8), offset]
            self.emit("MAP_COPY", a, which=0b101)
        else:
            self._unknown(opcode, o)

    def _op_cvta(self, opcode, q, o):
        q = [x for x in q if x != "to"]
        if q[0] not in ("param", "global") or q[1] != "u64":
            self._unknown(opcode, o)
        self.emit("MOV64", [self.dst(o[0], 8), self.val(o[1], 8)])

    def _op_mma(self, opcode, q, o):
        shapes = {
            ("m16n8k16", "bf16"): (16, 4, 2), ("m16n8k16", "f16"): (16, 4, 2),
            ("m16n8k8", "tf32"): (8, 4, 2), ("m16n8k8", "bf16"): (8, 2, 1), ("m16n8k8", "f16"): (8, 2, 1),
            ("m16n8k4", "tf32"): (4, 2, 1),
        }  # fmt: skip
        if q[:2] != ["sync", "aligned"] or q[3:5] != ["row", "col"]:
            self._unknown(opcode, o)
        d, a, b, c = q[5:]
        if d != "f32" or c != "f32" or a != b or (q[2], a) not in shapes:
            self._unknown(opcode, o)
        k, na, nb = shapes[(q[2], a)]
        xs = [self.val(x, 4) for operand in o for x in self.vector(operand)]
        if len(xs) != 8 + na + nb:
            self._unknown(opcode, o)
        self.emit("MMA", [], xs=xs, imm=TY[a], imm2=k, imm3=na | nb << 8)

    def _op_wgmma(self, opcode, q, o):
        if q[0] == "fence":
            self.emit("WGMMA_FENCE")
        elif q[0] == "commit_group":
            self.emit("WGMMA_COMMIT")
        elif q[0] == "wait_group":
            self.emit("WGMMA_WAIT", imm=int(o[0], 0))
        else:
            found = re.match(r"m64n(\d+)k(\d+)$", q[3])
            d, a, b = q[4:7]
            if q[:3] != ["mma_async", "sync", "aligned"] or d != "f32" or a != b or a not in ("bf16", "f16", "tf32"):
                self._unknown(opcode, o)
            n = int(found[1])
            xs = [self.val(x, 4) for x in self.vector(o[0])]
            if len(xs) != n // 2:
                self._unknown(opcode, o)
            flags, in_registers = 0, o[1].startswith("{")
            first = NONE
            if in_registers:
                xs += [self.val(x, 4) for x in self.vector(o[1])]
                flags |= 1
            else:
                first = self.val(o[1], 8)
            scale = o[3]
            given = NONE
            if self._name(scale) in self.predicates:
                given = self.pred(scale) * 2
            elif int(scale, 0):
                flags |= 8
            flags |= 16 * (int(o[4]) == -1) | 32 * (int(o[5]) == -1)
            rest = o[6:]
            if in_registers:
                flags |= 4 * (rest == ["1"])
            elif rest:
                flags |= 2 * (rest[0] == "1") | 4 * (rest[1] == "1")
            self.emit("WGMMA", [first, self.val(o[2], 8), given], xs=xs, imm=TY[a], imm2=n, imm3=flags, which=0)

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
            self.labels,
        )


def parse(ptx: str) -> Program:
    """The one kernel in `ptx`.

    Raises:
        UnknownPtx: something the emulator does not have.
    """
    return Parser(ptx).program()
