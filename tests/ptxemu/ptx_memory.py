"""Parsing of moves: registers, memory, copies, and barriers of copies."""

import re

from ptxemu.ptx_types import NONE, SREGS, TY, size_of

# Of a tensor map, as map_replace in core/tensor_map.cpp numbers them.
MAP_FIELDS = [
    "global_address", "rank", "box_dim", "global_dim", "global_stride", "element_stride",
    "elemtype", "interleave_layout", "swizzle_mode", "fill_mode",
]  # fmt: skip
# Qualifiers without effect on a machine without caches that runs one program at a time.
ORDER = {"weak", "relaxed", "acquire", "release", "acq_rel", "volatile", "gpu", "cta", "sys"}
CACHES = {"nc", "ca", "cg", "cs", "cv", "lu", "wb", "wt"}
# Qualifiers of loads whose sectors are not counted on in L1, and their flag in core/lanes.h.
NOT_KEPT = {"cg", "cs", "cv", "lu", "relaxed", "acquire", "volatile"}
NOT_KEPT |= {"L1::no_allocate", "L1::evict_first"}
PAST_L1 = 0x1000


def without_hints(qualifiers: list[str]) -> list[str]:
    """Return the qualifiers without those of order and caches."""
    return [q for q in qualifiers if q not in ORDER | CACHES and not q.startswith(("L1::", "L2::"))]


class Memory:
    """Parser mixin with one method per operation, by the first word of its name."""

    def _op_ld(self, opcode, q, o):
        past = 0 if NOT_KEPT.isdisjoint(q) else PAST_L1
        space, *q = without_hints(q)
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
            # nvcc also addresses a struct by a register.
            pointer = NONE if base in self.param_offsets else self.val(base, 8)
            offset += self.param_offsets.get(base, 0)
            for i, name in enumerate(names):
                a = [self.dst(name, wide), pointer]
                self.emit("LDPARAM", a, imm=flags, imm2=offset + i * size)
            return
        xs = [self.dst(n, wide) for n in names]
        if space == "global":
            self.emit("LD_GLOBAL", [self.val(base, 8), offset], xs=xs, imm=flags | past, which=1)
        elif space == "shared":
            at = 8 if self.is_register(base) and self.width(base) == 8 else 4
            self.emit(
                "LD_SHARED",
                [self.val(base, at), offset],
                xs=xs,
                imm=flags | (0x800 if at == 8 else 0),
                which=1,
            )
        else:
            self._unknown(opcode, o)

    def _op_st(self, opcode, q, o):
        space, *q = without_hints(q)
        size = size_of(q[-1])
        names = self.vector(o[1])
        if (int(q[0][1:]) if q[0].startswith("v") else 1) != len(names):
            self._unknown(opcode, o)
        widths = [self.width(n) if self.is_register(n) else size for n in names]
        xs = [self.val(n, 8 if w == 8 else 4) for n, w in zip(names, widths, strict=True)]
        wide = sum(1 << i for i, w in enumerate(widths) if w == 8)
        base, offset = self.address(o[0])
        if space == "global":
            self.emit("ST_GLOBAL", [self.val(base, 8), offset], xs=xs, imm=size, imm2=wide, which=1)
        elif space == "shared":
            at = 8 if self.is_register(base) and self.width(base) == 8 else 4
            self.emit(
                "ST_SHARED",
                [self.val(base, at), offset],
                xs=xs,
                imm=size | (0x800 if at == 8 else 0),
                imm2=wide,
                which=1,
            )
        else:
            self._unknown(opcode, o)

    def _atomic(self, opcode, q, o, returns):
        space, what, ty = without_hints(q)
        code = ["add", "max", "min", "exch", "cas", "and", "or", "xor"].index(what)
        if space != "global" or size_of(ty) < 4 or "x2" in ty:
            self._unknown(opcode, o)
        size = size_of(ty)
        base, offset = self.address(o[1])
        a = [self.dst(o[0], size), self.val(base, 8), offset, self.val(o[2], size)]
        a.append(self.val(o[3], size) if what == "cas" else NONE)
        self.emit("ATOM_GLOBAL", a, imm=TY[ty], imm2=code, which=0b11011)

    def _op_atom(self, opcode, q, o):
        self._atomic(opcode, q, o, True)

    def _op_red(self, opcode, q, o):
        self._atomic(opcode, q, ["_", *o], False)

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

    def _op_cvta(self, opcode, q, o):
        q = [x for x in q if x != "to"]
        if q[0] not in ("param", "global") or q[1] != "u64":
            self._unknown(opcode, o)
        self.emit("MOV64", [self.dst(o[0], 8), self.val(o[1], 8)])

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
            self.emit("CP_ASYNC", a, imm=int(o[2], 0), imm2=int(q[1] == "cg"), which=0b10101)
        elif q[:2] == ["async", "bulk"]:
            self._bulk(opcode, q[2:], o)
        else:
            self._unknown(opcode, o)

    def _bulk(self, opcode, q, o):
        """Parse copies of tiles between tensors and shared memory."""
        if q == ["commit_group"]:
            self.emit("BULK_COMMIT")
            return
        if q in (["wait_group"], ["wait_group", "read"]):
            self.emit("BULK_WAIT", imm=int(o[0], 0), imm2=int("read" in q))
            return
        if q[0] != "tensor":
            self._unknown(opcode, o)
        rank, how = int(q[1][0]), [x for x in q[2:] if x not in ("tile", "L2::cache_hint")]
        if how in (
            [f"shared::{x}", "global", "mbarrier::complete_tx::bytes"] for x in ("cta", "cluster")
        ):
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
        q = [x for x in q if x not in ORDER | {"cluster"}]
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
            field = MAP_FIELDS.index(q[2])
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
