"""Reader of pickles of plain values, which calls nothing and builds no more than the file holds."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

_SIZE_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
# By opcode: number of bytes or lines of its argument, or number of bytes that hold its length.
_FIXED, _LINES, _COUNTED = [-1] * 256, {}, {}
for _one in pickletools.opcodes:
    _code, _length = ord(_one.code), _one.arg.n if _one.arg else 0
    if _length >= 0:
        _FIXED[_code] = _length
    elif _length == pickletools.UP_TO_NEWLINE:
        _LINES[_code] = 2 if _one.name in ("GLOBAL", "INST") else 1
    else:
        _COUNTED[_code] = _SIZE_BYTES[_length]
_FRAME, _STOP, _PUT, _LONG_PUT = (
    code[0] for code in (pickle.FRAME, pickle.STOP, pickle.PUT, pickle.LONG_BINPUT)
)
for _code in (_FRAME, _STOP, _LONG_PUT):
    _FIXED[_code] = -1

_LEAVES = (str, int, float, bool, type(None))
_MAX_DEPTH = 64
# A value takes at least one byte of the file, unless several references lead to it.
_VALUES_PER_BYTE = 4


def read_plain_pickle(path: str | Path) -> Any:
    """Read lists, dicts, texts and numbers from a pickle; nothing is called, nothing else is built.

    Bytes of Python 2 are decoded as UTF-8, or as Latin-1 where they are not UTF-8.

    Args:
        path: path of the file; Python 2 may have written it.

    Raises:
        OSError: the file does not exist.
        ValueError: the file holds anything else, claims more than it holds, or is no pickle.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        _check_claims(data)
        value = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
        return _Copy(_VALUES_PER_BYTE * len(data)).of(value)
    except Exception as error:
        # The unpickler raises nearly anything on data that is no pickle.
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: expected a pickle of plain values, got {reason}") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any):
        raise pickle.UnpicklingError(f"the persistent id {pid!r}")


def _check_claims(data: bytes) -> None:
    """Check lengths and memo indices of all opcodes, by which the unpickler allocates memory."""
    position, end = 0, len(data)
    while position < end:
        code = data[position]
        position += 1
        size = _FIXED[code]
        if size < 0:
            if code == _STOP:
                return
            size = _argument(data, position, code)
        position += size
        if position > end:
            raise pickle.UnpicklingError(f"{position} bytes of {end}")


def _argument(data: bytes, position: int, code: int) -> int:
    """Return the number of bytes of the argument at a position."""
    if code in _COUNTED:
        return _COUNTED[code] + _number(data, position, _COUNTED[code])
    if code == _FRAME:
        # The content of a frame is checked like all else.
        if position + 8 + _number(data, position, 8) > len(data):
            raise pickle.UnpicklingError(f"a frame of {_number(data, position, 8)} bytes")
        return 8
    index, size = 0, 4
    if code == _LONG_PUT:
        index = _number(data, position, size)
    elif code in _LINES:
        stop = position
        for _ in range(_LINES[code]):
            stop = data.find(b"\n", stop) + 1 or len(data) + 1
        size = stop - position
        index = int(data[position:stop]) if code == _PUT else 0
    else:
        raise pickle.UnpicklingError(f"the opcode {bytes([code])!r}")
    # Each byte puts at most one value into the memo.
    if index > position:
        raise pickle.UnpicklingError(f"memo index {index} after {position} bytes")
    return size


def _number(data: bytes, position: int, size: int) -> int:
    return int.from_bytes(data[position : position + size], "little")


class _Copy:
    """Copier of plain values that decodes all bytes as text.

    A few bytes can refer to a list many times, and that list to others: the result is small in
    memory but too long to traverse. So each value counts once for every reference to it.

    Args:
        limit: max number of values.
    """

    def __init__(self, limit: int):
        self._left = limit
        self._texts: dict[bytes, str] = {}

    def of(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        if kind in _LEAVES:
            return value
        if kind is bytes:
            return self._text(value)
        if kind not in (list, tuple, dict):
            raise pickle.UnpicklingError(f"a {kind.__name__}")
        self._left -= len(value)
        if self._left < 0 or depth == _MAX_DEPTH:
            raise pickle.UnpicklingError("values that are nested or referenced too often")
        if kind is dict:
            return {self._inner(key, depth): self._inner(one, depth) for key, one in value.items()}
        return kind(self._inner(one, depth) for one in value)

    def _inner(self, value: Any, depth: int) -> Any:
        return value if type(value) in _LEAVES else self.of(value, depth + 1)

    def _text(self, data: bytes) -> str:
        if data not in self._texts:
            try:
                self._texts[data] = data.decode("utf-8")
            except UnicodeDecodeError:
                self._texts[data] = data.decode("latin-1")
        return self._texts[data]
