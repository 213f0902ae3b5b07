"""Kernels with tensor descriptors, for the self-tests: copies and products of tiles."""

import triton
import triton.language as tl


@triton.jit
def copy_tiles(source, target, scale, BM: tl.constexpr, BN: tl.constexpr, SCALED: tl.constexpr):
    i, j = tl.program_id(0) * BM, tl.program_id(1) * BN
    tile = source.load([i, j])
    if SCALED:
        tile = (tile * scale).to(tile.dtype)
    target.store([i, j], tile)


@triton.jit
def copy_blocks(source, target, BN: tl.constexpr):
    """Copy tiles of three dimensions; elements outside of the tensor are 0."""
    i = tl.program_id(0)
    target.store([i, 0, 0], source.load([i, -1, 0]))
    target.store([i, BN, 0], source.load([i, BN - 1, 0]))


@triton.jit
def gram(x, out, n, D, PRECISION: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """Multiply all pairs of rows."""
    i, j = tl.program_id(0) * BM, tl.program_id(1) * BM
    total = tl.zeros((BM, BM), tl.float32)
    for k in range(0, D, BK):
        total = tl.dot(x.load([i, k]), x.load([j, k]).T, total, input_precision=PRECISION)
    row, col = i + tl.arange(0, BM), j + tl.arange(0, BM)
    m_out = (row < n)[:, None] & (col < n)[None, :]
    tl.store(out + row[:, None].to(tl.int64) * n + col[None, :], total, mask=m_out)


@triton.jit
def matmul_tiles(
    a, b, out, K, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """Multiply by an operand along N, whose tiles are wider than a swizzle."""
    i, j = tl.program_id(0) * BM, tl.program_id(1) * BN
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        total = tl.dot(a.load([i, k]), b.load([k, j]), total, input_precision=PRECISION)
    out.store([i, j], total)


@triton.jit
def gram_of_own(x, out, n, D, BM: tl.constexpr, BK: tl.constexpr):
    """Multiply all pairs of rows with a descriptor that the program creates."""
    desc = tl.make_tensor_descriptor(x, shape=[n, D], strides=[D, 1], block_shape=[BM, BK])
    i, j = tl.program_id(0) * BM, tl.program_id(1) * BM
    total = tl.zeros((BM, BM), tl.float32)
    for k in range(0, D, BK):
        total = tl.dot(desc.load([i, k]), desc.load([j, k]).T, total)
    row, col = i + tl.arange(0, BM), j + tl.arange(0, BM)
    m_out = (row < n)[:, None] & (col < n)[None, :]
    tl.store(out + row[:, None] * n + col[None, :], total, mask=m_out)
