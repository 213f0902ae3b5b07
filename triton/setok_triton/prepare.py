"""Kernel that writes the offsets of the images and the hyper-parameters for all other kernels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_kernels.config import LEARNABLE


@triton.jit(do_not_specialize=["images", "total", "L"])
def prepare_fwd_kernel(
    p_given,  # (B + 1,) int32 or int64, where PACKED
    p_offsets,  # (B + 1,) int64
    p_fit,  # () uint8: the given offsets rise from 0 to `total` by at most L, where PACKED
    p_learnable,  # (4,) float32, where LEARNABLE
    images,  # number of images B
    total,  # number of tokens T
    L,  # maximum number of tokens of an image; if not PACKED that of each image
    bandwidth,
    beta,
    temperature,
    offset,
    PACKED: tl.constexpr,
    LEARNABLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write offsets and hyper-parameters in one program, which costs a single launch."""
    if LEARNABLE:
        tl.store(p_learnable, bandwidth)
        tl.store(p_learnable + 1, beta)
        tl.store(p_learnable + 2, temperature)
        tl.store(p_learnable + 3, offset)
    b_misfit = tl.zeros((BLOCK,), dtype=tl.int32)
    for i_b in range(0, images + 1, BLOCK):
        o_b = i_b + tl.arange(0, BLOCK)
        m_b = o_b <= images
        if PACKED:
            b_start = tl.load(p_given + o_b, mask=m_b, other=0).to(tl.int64)  # (images,)
            # Entry `images` has no image: its end is its start.
            b_end = tl.load(p_given + tl.minimum(o_b + 1, images), mask=m_b, other=0).to(tl.int64)
            m_wrong = (b_end < b_start) | (b_end - b_start > L)
            m_wrong = m_wrong | ((o_b == 0) & (b_start != 0))
            m_wrong = m_wrong | ((o_b == images) & (b_start != total))
            b_misfit = b_misfit | (m_b & m_wrong).to(tl.int32)
        else:
            b_start = o_b.to(tl.int64) * L
        tl.store(p_offsets + o_b, b_start, mask=m_b)
    if PACKED:
        tl.store(p_fit, (tl.max(b_misfit, axis=0) == 0).to(tl.int8))


def prepare(
    x: Tensor, cu_seqlens: Tensor | None, longest: int, numbers: tuple[float, ...] | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the offsets (B + 1,) int64 of the images, and the hyper-parameters (4,) float32.

    The host does not read packed offsets. The device asserts that they are valid before any later
    kernel uses them.

    Args:
        x: tokens or labels, (B, N, ...), or (T, ...) with `cu_seqlens`.
        cu_seqlens: (B + 1,) offsets or None.
        longest: maximum number of tokens of an image.
        numbers: hyper-parameters in the order of `LEARNABLE`, or None to leave them out.
    """
    packed, total = cu_seqlens is not None, x.shape[0]
    images = cu_seqlens.shape[0] - 1 if packed else total
    if numbers is None:
        offsets, learnable = x.new_empty(images + 1, dtype=torch.int64), None
    else:
        # One allocation; the four floats come first, so that both parts are aligned to 16 bytes.
        memory = x.new_empty(2 + images + 1, dtype=torch.int64)
        learnable, offsets = memory[:2].view(torch.float32), memory[2:]
    fit = x.new_empty((), dtype=torch.uint8) if packed else offsets
    prepare_fwd_kernel[(1,)](
        cu_seqlens if packed else offsets,
        offsets,
        fit,
        offsets if learnable is None else learnable,
        images,
        total,
        longest if packed else x.shape[1],
        *(numbers or (0.0,) * len(LEARNABLE)),
        PACKED=packed,
        LEARNABLE=learnable is not None,
        BLOCK=256,
        num_warps=1,
    )
    if packed:
        torch._assert_async(
            fit.view(torch.bool),
            f"cu_seqlens: expected non-decreasing offsets from 0 to {total}, "
            f"of images of at most max_seqlen = {longest} tokens",
        )
    return offsets, learnable
