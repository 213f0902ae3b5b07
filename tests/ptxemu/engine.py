"""Execution of one launch on host memory, with checks and counters."""

import ctypes
import re
import struct
from dataclasses import dataclass, field

import numpy as np

from ptxemu.build import library
from ptxemu.parser import Program
from ptxemu.ptx_types import PARAM_BASE, SHARED_BASE, size_of

KINDS = [
    "none", "out-of-bounds", "misaligned", "out-of-shared", "race-in-shared", "race-in-global",
    "race-between-programs", "uninitialised-global", "uninitialised-shared",
    "async-copy-not-awaited", "barrier-divergence", "warp-sync-divergence",
    "wgmma-register-not-awaited", "async-operand-overwritten", "note-lanes-without-sync",
    "note-same-value-written-twice", "note-no-proxy-fence", "hang", "unsupported",
    "two-values-in-one-store", "different-barriers-met", "note-wgmma-input-register-reused",
    "mbarrier-misused", "no-proxy-fence", "bad-tensor-map",
]  # fmt: skip
# Kinds of findings that are only notes; any other finding fails a check.
NOTES = {k for k in KINDS if k.startswith("note")} | {"different-barriers-met"}
MAX_FINDINGS = 512
# Faults of a tensor map, see `MapFault` in core/tensor_map.cpp.
MAP_FAULTS = (
    "another rank than the instruction",
    "an unknown element type",
    "its address is no multiple of 16 bytes",
    "a stride is no multiple of 16 bytes or too large",
    "a box of 0 or more than 256 elements",
    "a dimension of 0",
    "rows of the box are no multiple of 16 bytes",
    "rows of the box are not as wide as the swizzle",
    "a layout that the emulator does not have",
)


class Ins(ctypes.Structure):
    _fields_ = [("words", ctypes.c_int32 * 16)]


class CFinding(ctypes.Structure):
    _fields_ = [
        *(
            (n, ctypes.c_int32)
            for n in ["kind", "pc1", "pc2", "cta", "warp1", "warp2", "lane", "segment"]
        ),
        ("offset", ctypes.c_int64),
        ("count", ctypes.c_int64),
    ]


class CSegment(ctypes.Structure):
    _fields_ = [
        ("host", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("va", ctypes.c_uint64),
        ("init", ctypes.c_void_p),
        ("nspans", ctypes.c_int64),
        ("spans", ctypes.c_void_p),
    ]


class CLaunch(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_void_p),
        ("pool", ctypes.c_void_p),
        ("consts", ctypes.c_void_p),
        ("params", ctypes.c_void_p),
        ("segments", ctypes.c_void_p),
        *((n, ctypes.c_int64) for n in ["n_ins", "n_regs", "n_preds", "n_segments"]),
        ("grid", ctypes.c_int64 * 3),
        *((n, ctypes.c_int64) for n in ["num_warps", "shared_bytes"]),
        ("seed", ctypes.c_uint64),
        ("flags", ctypes.c_int64),
        ("max_ins", ctypes.c_int64),
        *(
            (n, ctypes.c_void_p)
            for n in ["pc_count", "pc_lanes", "pc_cost", "pc_longest", "findings"]
        ),
        *(
            (n, ctypes.c_int64)
            for n in [
                "max_findings",
                "n_findings",
                "n_longest_first",
                "n_first",
                "shared_base",
                "param_base",
                "param_bytes",
            ]
        ),
    ]


@dataclass(frozen=True)
class Options:
    """Options of the machine.

    Attributes:
        seed: random seed of the order of programs and warps.
        checks: flag: use shadow memory.
        counters: flag: count executions.
        truncate: flag: tensor cores align products and truncate, like hardware; otherwise they sum
            exactly and round once.
        copies: time at which asynchronous work takes effect: "late" (when awaited), "early" or
            "random".
        ulp: flag: approximations (ex2, rcp, sqrt.approx, …) err by at most one unit at random.
        views: flag: a pointer reaches only what its tensor views, not all of its storage.
        max_instructions: number of instructions of a warp after which a launch counts as hanging.
    """

    seed: int = 0
    checks: bool = True
    counters: bool = True
    truncate: bool = False
    copies: str = "random"
    ulp: bool = False
    views: bool = True
    max_instructions: int = 2_000_000_000

    @property
    def flags(self) -> int:
        bits = {1: self.checks, 2: self.counters, 4: self.truncate, 32: self.ulp, 64: self.views}
        return (
            sum(b for b, on in bits.items() if on)
            | {"late": 8, "early": 16, "random": 0}[self.copies]
        )


def options_of(text: str) -> Options:
    """Parse "name=value,…"."""
    known = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        kind = type(getattr(Options, name))
        known[name] = value if kind is str else kind(int(value))
    return Options(**known)


@dataclass
class Memory:
    """Range of host memory that a kernel may reach.

    Attributes:
        name: name for messages.
        host: address of the first byte.
        size: size in bytes.
        init: one flag per byte, 0 for unwritten; None: all written.
        spans: ranges [begin, end) in bytes of the views that were passed.
    """

    name: str
    host: int
    size: int
    init: np.ndarray | None = None
    spans: list[tuple[int, int]] = field(default_factory=list)

    def address(self, index: int) -> int:
        """Address in the kernel: far from all others, with the alignment of the host."""
        return ((index + 1) << 40) + (1 << 39) + (self.host & 0xFFF)


# As `tensormap.replace` counts them: unsigned, signed and floating point of 1 to 8 bytes.
ELEMENT_BYTES = (1, 2, 4, 4, 8, 8, 2, 4, 4, 8, 2, 4, 4)


@dataclass(frozen=True)
class TensorMap:
    """Descriptor of tiles, created on the host.

    Attributes:
        memory: index of its memory.
        offset: offset in bytes of the first element.
        element: code of the element type.
        shape: sizes, last dimension first.
        strides: strides in bytes of all other dimensions, in the same order.
        box: sizes of a tile.
        swizzle: width of the swizzle, 0 (none), 32, 64 or 128 bytes.
        nan: flag: elements outside are NaN, not 0.
    """

    memory: int
    offset: int
    element: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int
    nan: bool = False

    def encode(self, address: int) -> bytes:
        """Return the 128 bytes of `TensorMap` in core/machine.h.

        Raises:
            RuntimeError: CUDA does not support such a descriptor.
        """
        inner = self.box[0] * ELEMENT_BYTES[self.element]
        span = (0, 32, 64, 128)[self.swizzle]
        possible = {
            "rank": 1 <= len(self.shape) <= 5,
            "address": address % 16 == 0,
            "shape": all(1 <= n < 1 << 32 for n in self.shape),
            "strides": all(s % 16 == 0 and 0 <= s < 1 << 40 for s in self.strides),
            "box": all(1 <= n <= 256 for n in self.box) and inner % 16 == 0,
            "swizzle": not span or inner <= span,
        }
        if wrong := [name for name, fine in possible.items() if not fine]:
            raise RuntimeError(f"no such tensor map ({', '.join(wrong)}): {self}")

        def five(values):
            return (*values, *[0] * (5 - len(values)))

        rank = len(self.shape)
        words = [rank - 1, self.element, self.swizzle, int(self.nan), 0]
        words += [*five(self.box), *five(self.shape), *five([1] * rank)]
        strides = five(self.strides)[:4]
        return struct.pack("<5Q20I", address, *strides, *words).ljust(128, b"\0")


@dataclass(frozen=True)
class Finding:
    """Fault or note that a check found."""

    kind: str
    kernel: str
    text: str
    count: int

    @property
    def is_note(self) -> bool:
        return self.kind in NOTES

    def __str__(self) -> str:
        return f"{self.kind} in {self.kernel}: {self.text} ({self.count} times)"


def key_of(finding: Finding) -> str:
    """Return kind, kernel and source lines, without details that change between runs."""
    places = re.findall(r": ([\w./]+\.py:\d+)", finding.text)
    return " ".join([finding.kind, finding.kernel, *sorted(set(places))])


@dataclass
class Run:
    """Result of a launch. Arrays have an entry for each instruction.

    Attributes:
        program: parsed kernel.
        findings: faults and notes of the checks.
        aborted: flag: a fault stopped the launch.
        executed: executions by warps.
        lanes: executions by lanes.
        cost: sectors of global memory, or passes through the banks of shared memory.
        longest: executions by the warps of the program with the most executions.
        first_sectors: distinct sectors that a program reads by loads that L1 keeps, summed over
            the programs.
        longest_first_sectors: those of the program with the most executions.
    """

    program: Program
    findings: list[Finding]
    aborted: bool
    executed: np.ndarray
    lanes: np.ndarray
    cost: np.ndarray
    longest: np.ndarray
    first_sectors: int = 0
    longest_first_sectors: int = 0


def launch(
    program: Program,
    grid: tuple[int, int, int],
    arguments: list,
    memories: list[Memory],
    shared: int,
    options: Options,
    num_warps: int | None = None,
) -> Run:
    """Run `program` over a grid.

    Args:
        program: parsed kernel.
        grid: number of programs in each dimension.
        arguments: values of its parameters: numbers, tensor maps, (memory index, byte offset), or
            the bytes of a struct.
        memories: memories that the kernel may reach.
        shared: bytes of shared memory of a program.
        options: options of the machine.
        num_warps: number of warps of a program; None for that of the code.
    """
    params = bytearray(program.param_bytes + 16)
    for (kind, offset), value in zip(program.params, arguments, strict=True):
        if isinstance(value, TensorMap):
            data = value.encode(memories[value.memory].address(value.memory) + value.offset)
            params[offset : offset + len(data)] = data
            continue
        if isinstance(value, bytes):
            params[offset : offset + len(value)] = value
            continue
        size = size_of(kind)
        if isinstance(value, tuple):
            index, inside = value
            bits = memories[index].address(index) + inside
            data = bits.to_bytes(8, "little")
        elif kind in ("f32", "f64") or isinstance(value, float):
            data = np.array(value, {4: np.float32, 8: np.float64, 2: np.float16}[size]).tobytes()
        else:
            bits = 8 * size
            if not -(1 << (bits - 1)) <= int(value) < 1 << bits:
                raise OverflowError(
                    f"{program.name}: {value} does not fit into a parameter of type {kind}"
                )
            data = (int(value) & ((1 << bits) - 1)).to_bytes(size, "little")
        params[offset : offset + size] = data
    params_array = np.frombuffer(bytes(params), np.uint8).copy()
    segments = (CSegment * max(1, len(memories)))()
    keep = []
    for i, m in enumerate(memories):
        spans = np.array(m.spans or [(0, m.size)], dtype=np.int64)
        keep.append(spans)
        init = None if m.init is None else m.init.ctypes.data
        segments[i] = CSegment(m.host, m.size, m.address(i), init, len(spans), spans.ctypes.data)
    n = len(program.code)
    executed, lanes, cost, longest = (np.zeros(n, np.uint64) for _ in range(4))
    found = (CFinding * MAX_FINDINGS)()
    c = CLaunch(
        program.code.ctypes.data,
        program.pool.ctypes.data,
        program.consts.ctypes.data,
        params_array.ctypes.data,
        ctypes.addressof(segments),
        n,
        program.n_regs,
        program.n_preds,
        len(memories),
        (ctypes.c_int64 * 3)(*grid),
        num_warps or program.num_warps,
        shared,
        options.seed,
        options.flags,
        options.max_instructions,
        executed.ctypes.data,
        lanes.ctypes.data,
        cost.ctypes.data,
        longest.ctypes.data,
        ctypes.addressof(found),
        MAX_FINDINGS,
        0,
        0,
        0,
        SHARED_BASE,
        PARAM_BASE,
        program.param_bytes,
    )
    lib = library()
    if lib.launch_bytes() != ctypes.sizeof(CLaunch):
        raise RuntimeError("engine.py and core.cpp disagree about the layout of a launch")
    aborted = bool(lib.emulate(ctypes.byref(c)))
    findings = [_describe(program, memories, found[i]) for i in range(c.n_findings)]
    first = (c.n_first, c.n_longest_first)
    return Run(program, findings, aborted, executed, lanes, cost, longest, *first)


def nothing_run(program: Program) -> Run:
    """Return the result of a launch that executed nothing."""
    zeros = (np.zeros(len(program.code), np.uint64) for _ in range(4))
    return Run(program, [], False, *zeros)


def _describe(program: Program, memories: list[Memory], f: CFinding) -> Finding:
    def at(pc):
        if pc < 0 or pc >= len(program.text):
            return "?"
        return f"{program.where[pc]} | ptx {program.ptx_line[pc]}: {program.text[pc]}"

    kind = KINDS[f.kind]
    if f.segment >= 0:
        m = memories[f.segment]
        place = f"byte {f.offset} of {m.name} ({m.size} bytes)"
    elif kind == "bad-tensor-map":
        place = MAP_FAULTS[f.offset]
    elif "register" in kind:
        place = f"register slot {f.offset // 32}"
    elif kind == "out-of-bounds":
        place = f"address {f.offset & 0xFFFFFFFFFFFFFFFF:#x}, in no tensor"
    else:
        place = f"byte {f.offset} of shared memory"
    who = f"program {f.cta} warp {f.warp1}"
    if f.lane >= 0:
        who += f" lane {f.lane}"
    text = f"{who}, {place}: {at(f.pc1)}"
    if kind == "out-of-bounds" and f.pc2 == 1:
        text = f"{who}, {place}, outside of the view passed: {at(f.pc1)}"
    elif f.pc2 >= 0:
        text += f" || against warp {f.warp2}: {at(f.pc2)}"
    return Finding(kind, program.name, text, f.count)
