"""Small kernels with known results, for the self-tests."""

from typing import Any, NamedTuple

import triton
import triton.language as tl


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


@triton.jit
def add_unmasked(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i) + tl.load(y + i), mask=i < n)


@triton.jit
def softmax(x, out, columns, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    row = tl.program_id(0)
    v = tl.load(x + row * columns + i, mask=i < columns, other=-float("inf"))
    e = tl.exp(v - tl.max(v, axis=0))
    tl.store(out + row * columns + i, e / tl.sum(e, axis=0), mask=i < columns)


@triton.jit
def matmul(
    a, b, c, M, N, K, am, ak, bk, bn,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for i in range(0, K, BK):
        x = tl.load(
            a + m[:, None] * am + (i + k)[None, :] * ak,
            mask=(m < M)[:, None] & (i + k < K)[None, :],
            other=0.0,
        )
        y = tl.load(
            b + (i + k)[:, None] * bk + n[None, :] * bn,
            mask=(n < N)[None, :] & (i + k < K)[:, None],
            other=0.0,
        )
        total = tl.dot(x, y, total, input_precision=PRECISION)
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def scaled_matmul(
    a,
    b,
    c,
    M,
    N,
    K,
    scale,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Multiply with one operand in registers."""
    m, n, k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for i in range(0, K, BK):
        x = tl.load(a + m[:, None] * K + (i + k)[None, :], mask=(m < M)[:, None], other=0.0)
        y = tl.load(b + (i + k)[:, None] * N + n[None, :], mask=(n < N)[None, :], other=0.0)
        x = (x * scale).to(x.dtype)
        total = tl.dot(x, y, total, input_precision=PRECISION)
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def transpose(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i[:, None] * N + i[None, :])
    tl.store(out + i[:, None] * N + i[None, :], tl.trans(v))


@triton.jit
def sort_and_scan(x, out, total, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    tl.store(out + i, tl.sort(v))
    tl.store(total + i, tl.cumsum(v, 0))


@triton.jit
def read_again(x, out, n, turns, BLOCK: tl.constexpr, CACHE: tl.constexpr):
    """Sum `n` values `turns` times, the last program one turn more."""
    i, total = tl.arange(0, BLOCK), tl.zeros((BLOCK,), tl.float32)
    for _ in range(turns + (tl.program_id(0) == tl.num_programs(0) - 1).to(tl.int32)):
        for begin in range(0, n, BLOCK):
            total += tl.load(x + begin + i, cache_modifier=CACHE)
    tl.store(out + tl.program_id(0) * BLOCK + i, total)


@triton.jit
def count(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out + tl.load(x + i, mask=i < n, other=0), 1, mask=i < n)


@triton.jit
def through_memory(x, scratch, out, N: tl.constexpr, SYNC: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(scratch + i, tl.load(x + i))
    if SYNC:
        tl.debug_barrier()
    tl.store(out + i, tl.load(scratch + N - 1 - i))


@triton.jit
def all_write(out):
    tl.store(out, tl.program_id(0))


@triton.jit
def accumulate(x, out, BLOCK: tl.constexpr):
    """Add to memory that a neighbour program writes."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i))
    tl.store(out + i + BLOCK, tl.load(x + i))


@triton.jit(do_not_specialize=["shift"])
def promised(x, out, shift, N: tl.constexpr):
    """Promise that offsets begin at a multiple of 4."""
    i = tl.max_contiguous(tl.multiple_of(shift + tl.arange(0, N), 4), 4)
    tl.store(out + tl.arange(0, N), tl.load(x + i))


class Operands(NamedTuple):
    """Arguments in a bundle; an absent one is None."""

    x: Any
    bias: Any
    stride: Any


@triton.jit
def bundled(given, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(given.x + i * given.stride, mask=i < n)
    if given.bias is not None:
        v += tl.load(given.bias + i, mask=i < n)
    tl.store(out + i, v, mask=i < n)


@triton.jit
def low_half(x, out, N: tl.constexpr):
    """Store 4 bytes of 64-bit registers, as the assembler allows."""
    i = tl.arange(0, N)
    tl.inline_asm_elementwise(
        "st.global.b32 [$1], $2; mov.b32 $0, 0;",
        "=r,l,l",
        [out + i, tl.load(x + i)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
