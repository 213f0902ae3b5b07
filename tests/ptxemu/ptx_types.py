"""Names of PTX and their codes in the emulator."""

import re

NONE = -(2**31)
TYPES = [
    "u16", "s16", "u32", "s32", "u64", "s64", "f32", "f64", "f16", "bf16", "u8", "s8", "pred",
    "tf32",
]  # fmt: skip
TY = {name: i for i, name in enumerate(TYPES)} | {"b16": 0, "b32": 2, "b64": 4, "b8": 10}
BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}
COMPARISONS = [
    "eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
]  # fmt: skip
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
    """Error: the emulator does not support an instruction."""


def size_of(type_name: str) -> int:
    """Return the bytes of a value of a type."""
    return BYTES[re.sub(r"\D", "", type_name)]
