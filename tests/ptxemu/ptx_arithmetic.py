"""Parsing of arithmetic: integers, floating point, bits, comparisons, conversions."""

from functools import partialmethod

from ptxemu.ptx_types import COMPARISONS, NONE, ROUNDINGS, TY, size_of


class Arithmetic:
    """Parser mixin with one method per operation, by the first word of its name."""

    def _binary(self, name, size, o, imm=0):
        self.emit(name, [self.dst(o[0], size), self.val(o[1], size), self.val(o[2], size)], imm=imm)

    def _arith(self, opcode, q, o, word):
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

    _op_add = partialmethod(_arith, word="ADD")
    _op_sub = partialmethod(_arith, word="SUB")
    _op_min = partialmethod(_arith, word="MIN")
    _op_max = partialmethod(_arith, word="MAX")

    def _op_mul(self, opcode, q, o):
        ty = q[-1]
        if q[0] == "lo":
            self._binary(f"MULLO{8 * size_of(ty)}", size_of(ty), o)
        elif q[0] == "hi":
            self._binary(f"MULHI_{ty.upper()}", size_of(ty), o)
        elif q[0] == "wide":
            size = size_of(ty)
            self.emit(
                f"MULW_{ty.upper()}",
                [self.dst(o[0], 2 * size), self.val(o[1], size), self.val(o[2], size)],
            )
        else:
            self._arith(opcode, q, o, "MUL")

    def _op_mad(self, opcode, q, o):
        ty, size = q[-1], size_of(q[-1])
        if q[0] == "lo":
            self.emit(
                f"MADLO{8 * size}", [self.dst(o[0], size), *(self.val(x, size) for x in o[1:])]
            )
        elif q[0] == "wide":
            a = [self.dst(o[0], 8), self.val(o[1], 4), self.val(o[2], 4), self.val(o[3], 8)]
            self.emit(f"MADW_{ty.upper()}", a)
        else:
            self._unknown(opcode, o)

    def _op_fma(self, opcode, q, o):
        if q[0] != "rn" or len(q) != 2:
            self._unknown(opcode, o)
        ty = q[1]
        name = {"f32": "FMA_F32", "f64": "FMA_F64"}.get(ty) or (
            "FMA_H2" if ty.endswith("x2") else "FMA_H"
        )
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

    def _logic(self, opcode, q, o, word):
        if q[0] == "pred":
            self.emit(f"{word}P", [self.pred(x) for x in o], which=0)
        else:
            self._binary(f"{word}{8 * size_of(q[0])}", size_of(q[0]), o)

    _op_and = partialmethod(_logic, word="AND")
    _op_or = partialmethod(_logic, word="OR")
    _op_xor = partialmethod(_logic, word="XOR")

    def _op_shl(self, opcode, q, o):
        size = size_of(q[0])
        self.emit(f"SHL{8 * size}", [self.dst(o[0], size), self.val(o[1], size), self.val(o[2], 4)])

    def _op_shr(self, opcode, q, o):
        size = size_of(q[0])
        sign = "S" if q[0][0] == "s" else "U"
        self.emit(
            f"SHR_{sign}{8 * size}", [self.dst(o[0], size), self.val(o[1], size), self.val(o[2], 4)]
        )

    def _op_shf(self, opcode, q, o):
        name = {"l": "SHF_L", "r": "SHF_R"}[q[0]]
        self.emit(
            name, [self.dst(o[0], 4), *(self.val(x, 4) for x in o[1:])], imm=int(q[1] == "wrap")
        )

    def _op_bfe(self, opcode, q, o):
        size = size_of(q[0])
        bits = (self.val(x, 4) for x in o[2:])
        self.emit(f"BFE_{q[0].upper()}", [self.dst(o[0], size), self.val(o[1], size), *bits])

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

    def _bits(self, opcode, q, o, name, kind="b32"):
        if q != [kind]:
            self._unknown(opcode, o)
        self._unary(name, 4, o)

    def _op_popc(self, opcode, q, o):
        if q == ["b64"]:
            self.emit("POPC64", [self.dst(o[0], 4), self.val(o[1], 8)])
        else:
            self._bits(opcode, q, o, "POPC32")

    _op_clz = partialmethod(_bits, name="CLZ32")
    _op_brev = partialmethod(_bits, name="BREV32")
    _op_bfind = partialmethod(_bits, name="BFIND_U32", kind="u32")

    def _op_selp(self, opcode, q, o):
        size = size_of(q[0])
        name = "SELP64" if size == 8 else "SELP32"
        self.emit(
            name,
            [self.dst(o[0], size), self.val(o[1], size), self.val(o[2], size), self.pred(o[3])],
            which=7,
        )

    def _op_setp(self, opcode, q, o):
        cmp, ty = q[0], q[-1]
        if "ftz" in q:
            self._unknown(opcode, o)
        combine = {"and": 1, "or": 2, "xor": 3}[q[1]] if len(q) == 3 else 0
        if ty[0] in "us" or (ty[0] == "b" and ty != "bf16"):
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
        widths = (
            (1 if d_width == 8 else 0) | (2 if x_width == 8 else 0) | (4 if d_width == 2 else 0)
        )
        a = [self.dst(o[0], d_width), self.val(o[1], x_width)]
        # nx holds the widths of the registers here.
        self.emit("CVT", a, nx=widths, imm=TY[to] | TY[source] << 8, imm2=mode, imm3=flags)

    def _approx(self, opcode, q, o, name):
        if q[0] != "approx" or q[-1] != "f32":
            self._unknown(opcode, o)
        self._unary(name, 4, o, imm=int("ftz" in q))

    _op_ex2 = partialmethod(_approx, name="EX2_F32")
    _op_lg2 = partialmethod(_approx, name="LG2_F32")
    _op_rsqrt = partialmethod(_approx, name="RSQRT_APPROX_F32")
    _op_sin = partialmethod(_approx, name="SIN_F32")
    _op_cos = partialmethod(_approx, name="COS_F32")
    _op_tanh = partialmethod(_approx, name="TANH_F32")

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
