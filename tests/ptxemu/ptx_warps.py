"""Parsing of warp instructions: control, barriers, shuffles, tile products."""

import re

from ptxemu.ptx_types import NONE, TY


class Warps:
    """Parser mixin with one method per operation, by the first word of its name."""

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
        self.emit(
            "VOTE",
            [d, self.pred2(o[1]), self.val(o[2], 4)],
            imm=mode,
            which=0b101 if mode == 0 else 0b100,
        )

    def _op_activemask(self, opcode, q, o):
        self.emit("ACTIVEMASK", [self.dst(o[0], 4)])

    def _op_redux(self, opcode, q, o):
        code = {"add": 0, "min": 1, "max": 2, "and": 3, "or": 4, "xor": 5}[q[1]]
        if q[-1] not in ("s32", "u32", "b32", "f32") or "NaN" in q or "abs" in q:
            self._unknown(opcode, o)
        self.emit(
            "REDUX",
            [self.dst(o[0], 4), self.val(o[1], 4), self.val(o[2], 4)],
            imm=code,
            imm2=TY[q[-1]],
        )

    def _op_elect(self, opcode, q, o):
        d, p = (x.strip() for x in o[0].split("|"))
        self.emit("ELECT", [self.dst(d, 4), self.pred(p)], which=1)

    def _op_mma(self, opcode, q, o):
        shapes = {
            ("m16n8k16", "bf16"): (16, 4, 2), ("m16n8k16", "f16"): (16, 4, 2),
            ("m16n8k8", "tf32"): (8, 4, 2), ("m16n8k8", "bf16"): (8, 2, 1),
            ("m16n8k8", "f16"): (8, 2, 1), ("m16n8k4", "tf32"): (4, 2, 1),
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
            if (
                q[:3] != ["mma_async", "sync", "aligned"]
                or d != "f32"
                or a != b
                or a not in ("bf16", "f16", "tf32")
            ):
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
            self.emit(
                "WGMMA",
                [first, self.val(o[2], 8), given],
                xs=xs,
                imm=TY[a],
                imm2=n,
                imm3=flags,
                which=0,
            )
