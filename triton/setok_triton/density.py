"""Kernels of the local density (SeTok, Eq. 1)."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class SquaredNormsConfig:
    """Launch configuration of `squared_norms_fwd_kernel`."""

    block_n: int
    block_d: int
    num_warps: int


def squared_norms_config(element_size: int) -> SquaredNormsConfig:
    """Chooses the launch configuration.

    It depends on the size of an element only, so no shape compiles a kernel of its own.

    Args:
        element_size: bytes per feature.
    """
    num_warps = 4
    # 32 lanes of 16 bytes: one warp reads its part of a row in one widest load.
    return SquaredNormsConfig(
        block_n=4 * num_warps, block_d=32 * 16 // element_size, num_warps=num_warps
    )


# The strides keep their specialisation (on 1 and on multiples of 16), a handful of variants for all
# shapes: without it rows are not known to be aligned and are loaded element by element.
@triton.jit(do_not_specialize=["N", "D"])
def squared_norms_fwd_kernel(
    p_x,  # (B, N, D), any strides
    p_norms,  # (B, N), contiguous
    N,
    D,
    stride_b,
    stride_n,
    stride_d,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Writes ‖x_n‖² for BLOCK_N rows of one image, accumulated in the type of `p_norms`."""
    # One grid dimension: the others end at 65535, which a batch may exceed.
    blocks_per_image = tl.cdiv(N, BLOCK_N)
    i_b = (tl.program_id(0) // blocks_per_image).to(tl.int64)
    i_n = tl.program_id(0) % blocks_per_image

    o_n = i_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    m_n = o_n < N
    p_rows = p_x + i_b * stride_b + o_n * stride_n

    b_sums = tl.zeros((BLOCK_N, BLOCK_D), dtype=p_norms.dtype.element_ty)
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)  # (BLOCK_D,)
    # Whole blocks without a mask over D, which would break the widest loads apart; then the rest.
    i_rest = D // BLOCK_D * BLOCK_D
    for i_d in range(0, i_rest, BLOCK_D):
        p_block = p_rows[:, None] + ((i_d + o_d) * stride_d)[None, :]
        b_x = tl.load(p_block, mask=m_n[:, None], other=0.0).to(b_sums.dtype)
        b_sums += b_x * b_x
    if i_rest < D:
        p_block = p_rows[:, None] + ((i_rest + o_d) * stride_d)[None, :]
        m_x = m_n[:, None] & (i_rest + o_d < D)[None, :]
        b_x = tl.load(p_block, mask=m_x, other=0.0).to(b_sums.dtype)
        b_sums += b_x * b_x

    tl.store(p_norms + i_b * N + o_n, tl.sum(b_sums, axis=1), mask=m_n)


def squared_norms(x: Tensor) -> Tensor:
    """Computes the squared Euclidean norm of every token.

    Not differentiable by itself; the density op that calls it defines the gradient.

    Args:
        x: (B, N, D), floating point, any strides, on a CUDA device (or on the CPU under
            `TRITON_INTERPRET=1`).

    Returns:
        (B, N), float32, or float64 if x is float64; accumulated in that type. Zero when D = 0.
    """
    assert x.is_floating_point() and x.dim() == 3
    B, N, D = x.shape
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    norms = torch.empty((B, N), dtype=dtype, device=x.device)
    if norms.numel() == 0:
        return norms
    config = squared_norms_config(x.element_size())
    with torch.cuda.device_of(x):
        squared_norms_fwd_kernel[(B * triton.cdiv(N, config.block_n),)](
            x,
            norms,
            N,
            D,
            *x.stride(),
            BLOCK_N=config.block_n,
            BLOCK_D=config.block_d,
            num_warps=config.num_warps,
        )
    return norms
