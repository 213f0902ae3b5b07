"""Repairs Triton 3.7's interpreter, which multiplies the bit patterns of bfloat16 in a dot.

And tokens too far apart for 31 bits.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def repair_bfloat16_dot() -> None:
    """Makes `tl.dot` of the interpreter widen bfloat16 operands first; the products are exact."""
    builder = interpreter.InterpreterBuilder
    plain = builder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self, a, b, *rest):
        return plain(self, widened(a), widened(b), *rest)

    if plain.__name__ != "create_dot" or plain.__module__ == interpreter.__name__:
        builder.create_dot = create_dot


def far_apart(x: torch.Tensor) -> torch.Tensor:
    """bfloat16 (1, N, D), N above 16, with features more than 2**31 numbers apart.

    NumPy leaves its memory alone: only the pages that are touched take any.
    """
    stride, (_, tokens, dim) = 2**27, x.shape
    memory = np.empty((tokens - 1) * stride + dim, dtype=np.int16)
    spread = torch.from_numpy(memory).view(torch.bfloat16)
    return spread.as_strided((1, tokens, dim), (0, stride, 1)).copy_(x)
