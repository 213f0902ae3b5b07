"""Repairs of Triton 3.7's interpreter, and tokens too far apart for 31 bits.

It multiplies the bit patterns of bfloat16 in a dot, rounds products as the BLAS does, cuts
float32 off to bfloat16, and reduces by a function of ours one number after the other. And memory
that finds accesses out of bounds.
"""

import contextlib

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from helpers import fast_interpreter
from setok_triton.common import locate


def repair() -> None:
    """Repairs all of it, where kernels are interpreted: compiled, they need Triton as it is."""
    if not isinstance(locate, interpreter.InterpretedFunction):
        return
    repair_dot()
    round_to_bfloat16()
    reduce_by_halves()
    fast_interpreter.speed_up()


def repair_dot() -> None:
    """Makes `tl.dot` of the interpreter widen bfloat16, and sum in one order, rounded once.

    The rounding of NumPy's BLAS depends on the row and the column on some processors, so that equal
    tokens would not have equal products, as they have on a GPU.
    """

    def numbers(handle):
        bits = handle.data
        if handle.dtype.scalar == tl.bfloat16:
            bits = (bits.astype(np.uint32) << 16).view(np.float32)
        return bits.astype(np.float64)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        rows, columns = numbers(a), np.ascontiguousarray(numbers(b).swapaxes(-1, -2))
        products = np.einsum("...ik,...jk->...ij", rows, columns).astype(d.data.dtype)
        return interpreter.TensorHandle(products + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot


def round_to_bfloat16() -> None:
    """Makes a cast of float32 to bfloat16 round to the nearest, ties to even, as a GPU does."""
    builder = interpreter.InterpreterBuilder
    plain = builder.cast_impl

    def cast_impl(self, src, dst_type):
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return plain(self, src, dst_type)
        bits = np.asarray(src.data, dtype=np.float32).view(np.uint32)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
        rounded = np.where(np.isnan(src.data), 0x7FC0, rounded)
        return interpreter.TensorHandle(rounded.astype(np.uint16), dst_type.scalar)

    if plain.__module__ == interpreter.__name__:
        builder.cast_impl = cast_impl


def reduce_by_halves() -> None:
    """Makes `tl.reduce` combine halves of the axis as vectors, a thousand times as fast.

    Numbers are summed in the order of a tree, which is nearer to that of a GPU.
    """

    def generic_reduce(self, input):
        tensors, axis = self.unravel(input, self.axis)
        parts = [np.moveaxis(one.handle.data, axis, 0) for one in tensors]
        dtypes = [one.dtype for one in tensors]
        while parts[0].shape[0] > 1:
            half = parts[0].shape[0] // 2
            halves = [
                self.to_tensor(part[side], dtype)
                for side in (slice(None, half), slice(half, None))
                for part, dtype in zip(parts, dtypes, strict=True)
            ]
            found = self.combine_fn.fn(*halves)
            found = found if isinstance(found, tuple) else (found,)
            parts = [one.handle.data for one in found]
        ends = [part[0] for part in parts]
        if self.keep_dims:
            ends = [np.expand_dims(end, axis) for end in ends]
        pairs = zip(ends, dtypes, strict=True)
        return [self.to_tensor(end, dtype) for end, dtype in pairs]

    interpreter.ReduceOps.generic_reduce = generic_reduce


def far_apart(x: torch.Tensor) -> torch.Tensor:
    """bfloat16 (1, N, D), N above 16, with features more than 2**31 numbers apart.

    NumPy leaves its memory alone: only the pages that are touched take any.
    """
    stride, (_, tokens, dim) = 2**27, x.shape
    memory = np.empty((tokens - 1) * stride + dim, dtype=np.int16)
    spread = torch.from_numpy(memory).view(torch.bfloat16)
    return spread.as_strided((1, tokens, dim), (0, stride, 1)).copy_(x)


# Bytes around each tensor of a launch: further than a block of any test reaches.
MARGIN = 2**20


@contextlib.contextmanager
def guarded_memory(monkeypatch):
    """Kernels that touch what lies outside the tensors of their launch raise an AssertionError.

    Each launch works on copies that lie apart, so that no tensor is another one's neighbour. Yields
    the names of the kernels that were launched.
    """
    views, launched, plain = [], set(), interpreter.InterpreterBuilder

    def guard(argument, copies):
        if isinstance(argument, tuple):
            inner = [guard(one, copies) for one in argument]
            return type(argument)(*inner) if hasattr(argument, "_fields") else tuple(inner)
        if not isinstance(argument, torch.Tensor):
            return argument
        return guard_tensor(argument, copies)

    def guard_tensor(tensor, copies):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in copies:
            memory = torch.full((storage.nbytes() + 2 * MARGIN,), 255, dtype=torch.uint8)
            memory[MARGIN:-MARGIN] = torch.empty(0, dtype=torch.uint8).set_(storage)
            copies[storage.data_ptr()] = (storage, memory)
        # MARGIN is a multiple of every size of an element.
        offset = MARGIN // tensor.itemsize + tensor.storage_offset()
        memory = copies[storage.data_ptr()][1].view(tensor.dtype)
        copy = memory.as_strided(tensor.size(), tensor.stride(), offset)
        if copy.numel():
            last = sum((n - 1) * s for n, s in zip(copy.shape, copy.stride(), strict=True))
            views.append((copy.data_ptr(), copy.data_ptr() + last * copy.itemsize))
        return copy

    def to_host(self, arguments, keywords):
        launched.add(self.fn.__name__)
        views.clear()
        self.copies = {}
        return [guard(argument, self.copies) for argument in arguments], keywords

    def to_device(self, *_):
        for storage, memory in self.copies.values():
            torch.empty(0, dtype=torch.uint8).set_(storage).copy_(memory[MARGIN:-MARGIN])

    def inside(pointers, mask):
        address = pointers.data[mask.data.astype(bool)]
        inside = np.zeros(address.shape, dtype=bool)
        for first, last in views:
            inside |= (address >= first) & (address <= last)
        assert inside.all(), "a kernel left the tensors of its launch"

    def checked(name, pointers_at, mask_at):
        kernel = getattr(plain, name)

        def call(self, *arguments):
            inside(arguments[pointers_at], arguments[mask_at])
            return kernel(self, *arguments)

        patch.setattr(plain, name, call)

    with monkeypatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "_init_args_hst", to_host)
        patch.setattr(interpreter.GridExecutor, "_restore_args_dev", to_device)
        checked("create_masked_load", 0, 1)
        checked("create_masked_store", 0, 2)
        checked("create_atomic_rmw", 1, 3)
        yield launched
