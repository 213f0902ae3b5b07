"""Kernels that merge tokens into clusters: soft by products with the masks, hard by members."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_triton.common import locate
from setok_triton.configs import merge_config, share_precision, token_config
from setok_triton.features import token_states
from setok_triton.scope import MaskLayout


@triton.jit
def share_dot(b_share, b_x, b_out, PRECISION: tl.constexpr):
    """`b_out` + shares (float32) times tokens.

    A share keeps 16 bits beside bfloat16 tokens: its rounded part and the rest of it, both exact
    in the product. The bits of float16 tokens fit into tf32.
    """
    if b_x.dtype == tl.bfloat16:
        b_high = b_share.to(tl.bfloat16)
        b_low = (b_share - b_high.to(tl.float32)).to(tl.bfloat16)
        b_out = tl.dot(b_high, b_x, b_out)
        b_out = tl.dot(b_low, b_x, b_out)
    else:
        b_out = tl.dot(b_share, b_x.to(tl.float32), b_out, input_precision=PRECISION)
    return b_out


@triton.jit(do_not_specialize=["rows", "D"])
def merge_soft_fwd_kernel(
    p_x,
    p_usable,  # (T,) int8
    p_weights,  # (T,) float32
    p_offsets,
    p_counts,
    p_masks,
    p_out,  # (B, rows, D)
    rows,
    D,
    eps,
    row_blocks,
    feature_blocks,
    stride_n,
    stride_d,
    stride_image,
    stride_row,
    stride_start,
    WEIGHTED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """sum_i w_i M_ci x_i / (sum_i w_i M_ci + eps) for a block of clusters and one of features."""
    i_b, i_tile, start, n = locate(p_offsets, row_blocks * feature_blocks)
    o_c = i_tile // feature_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    o_d = i_tile % feature_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    # Rows behind the residual are 0.
    m_c = o_c <= tl.load(p_counts + i_b)
    m_d = o_d < D
    p_shares = p_masks + i_b * stride_image + start * stride_start
    p_shares += o_c.to(tl.int64)[:, None] * stride_row
    b_sum = tl.zeros((BLOCK_C, BLOCK_D), dtype=tl.float32)
    b_mass = tl.zeros((BLOCK_C,), dtype=tl.float32)
    if i_tile // feature_blocks * BLOCK_C <= tl.load(p_counts + i_b):
        for i_n in range(0, n, BLOCK_N):
            o_n = i_n + tl.arange(0, BLOCK_N)
            m_n = (o_n < n) & (tl.load(p_usable + start + o_n, mask=o_n < n, other=0) != 0)
            b_share = tl.load(p_shares + o_n[None, :], mask=m_c[:, None] & m_n[None, :], other=0.0)
            if WEIGHTED:
                b_share *= tl.load(p_weights + start + o_n, mask=m_n, other=0.0)[None, :]
            p_block = p_x + ((start + o_n) * stride_n)[:, None] + (o_d.to(tl.int64) * stride_d)
            b_x = tl.load(p_block, mask=m_n[:, None] & m_d[None, :], other=0.0)
            b_sum = share_dot(b_share, b_x, b_sum, PRECISION)
            b_mass += tl.sum(b_share, axis=1)
    b_out = b_sum / (b_mass + eps)[:, None]
    p_rows = p_out + (i_b * rows + o_c)[:, None] * D + o_d[None, :]
    b_out = tl.where(m_c[:, None], b_out, 0.0).to(p_out.dtype.element_ty)
    tl.store(p_rows, b_out, mask=(o_c < rows)[:, None] & m_d[None, :])


@triton.jit(do_not_specialize=["rows", "D"])
def merge_hard_fwd_kernel(
    p_x,
    p_usable,
    p_weights,
    p_order,  # (T,) int64 tokens of all images, by image and label
    p_bounds,  # (B (rows + 1) + 1,) int64 where the members of each label begin
    p_out,
    rows,
    D,
    feature_blocks,
    stride_n,
    stride_d,
    WEIGHTED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Weighted mean of the members of one cluster, for a block of features."""
    # Masked tokens have a segment of their own behind the rows of an image.
    i_q = (tl.program_id(0) // feature_blocks).to(tl.int64)
    i_segment = i_q // rows * (rows + 1) + i_q % rows
    begin = tl.load(p_bounds + i_segment)
    end = tl.load(p_bounds + i_segment + 1)
    o_d = tl.program_id(0) % feature_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_sum = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    b_mass = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for i_n in range(begin, end, BLOCK_N):
        o_member = i_n + tl.arange(0, BLOCK_N)
        m_n = o_member < end
        o_n = tl.load(p_order + o_member, mask=m_n, other=0)
        m_n &= tl.load(p_usable + o_n, mask=m_n, other=0) != 0
        b_w = m_n.to(tl.float32)
        if WEIGHTED:
            b_w = tl.load(p_weights + o_n, mask=m_n, other=0.0)
        p_block = p_x + (o_n * stride_n)[:, None] + (o_d.to(tl.int64) * stride_d)[None, :]
        b_x = tl.load(p_block, mask=m_n[:, None] & m_d[None, :], other=0.0).to(tl.float32)
        b_sum += b_w[:, None] * b_x
        b_mass += b_w
    mass = tl.sum(b_mass, axis=0)
    b_out = tl.sum(b_sum, axis=0) / tl.where(mass > 0, mass, 1.0)
    tl.store(p_out + i_q * D + o_d, b_out.to(p_out.dtype.element_ty), mask=m_d)


@triton.jit(do_not_specialize=["rows", "D"])
def unmerge_soft_fwd_kernel(
    p_tokens,  # (B, rows, D)
    p_offsets,
    p_counts,
    p_masks,
    p_out,  # (T, D)
    rows,
    D,
    token_blocks,
    feature_blocks,
    stride_image,
    stride_row,
    stride_start,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """sum_c M_ci t_c for a block of tokens and one of features."""
    i_b, i_tile, start, n = locate(p_offsets, token_blocks * feature_blocks)
    o_n = i_tile // feature_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    o_d = i_tile % feature_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    m_n, m_d = o_n < n, o_d < D
    count = tl.load(p_counts + i_b).to(tl.int32)
    p_shares = p_masks + i_b * stride_image + start * stride_start + o_n[:, None]
    p_rows = p_tokens + i_b * rows * D + o_d[None, :]
    b_out = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for i_c in range(0, count + 1, BLOCK_C):
        o_c = (i_c + tl.arange(0, BLOCK_C)).to(tl.int64)
        m_c = o_c <= count
        b_share = tl.load(
            p_shares + o_c[None, :] * stride_row, mask=m_n[:, None] & m_c[None, :], other=0.0
        )
        b_t = tl.load(p_rows + o_c[:, None] * D, mask=m_c[:, None] & m_d[None, :], other=0.0)
        b_out = share_dot(b_share, b_t, b_out, PRECISION)
    p_block = p_out + (start + o_n)[:, None] * D + o_d[None, :]
    tl.store(p_block, b_out.to(p_out.dtype.element_ty), mask=m_n[:, None] & m_d[None, :])


@triton.jit(do_not_specialize=["rows", "D"])
def unmerge_hard_fwd_kernel(
    p_tokens,  # (B, rows, D)
    p_offsets,
    p_labels,  # (T,) int64
    p_out,  # (T, D)
    rows,
    D,
    blocks_per_image,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The token of each token's label, 0 where it has none."""
    i_b, i_n, start, n = locate(p_offsets, blocks_per_image)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    b_label = tl.load(p_labels + start + o_n, mask=m_n, other=-1)
    for i_d in range(0, D, BLOCK_D):
        o_d = i_d + tl.arange(0, BLOCK_D)
        m_d = (o_d < D)[None, :]
        p_rows = p_tokens + ((i_b * rows + b_label) * D)[:, None] + o_d[None, :]
        b_t = tl.load(p_rows, mask=(b_label >= 0)[:, None] & m_d, other=0.0)
        p_block = p_out + (start + o_n)[:, None] * D + o_d[None, :]
        tl.store(p_block, b_t, mask=m_n[:, None] & m_d)


def merge_soft(
    x: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    masks: Tensor,
    counts: Tensor,
    offsets: Tensor,
    longest: int,
    eps: float,
) -> Tensor:
    """Means of the tokens weighed by the masks.

    Args:
        x: (T, D) tokens of all images.
        labels: (T,) int64, -1 for masked tokens.
        weights: (T,) float32 or None.
        masks: (B, rows, N), or packed (rows, T), float32.
        counts: (B,) int64.
        offsets: (B + 1,) int64.
        longest: most tokens of an image.
        eps: added to the sum of the weights.

    Returns:
        (B, rows, D) in the dtype of `x`.
    """
    images, rows, dim = counts.shape[0], masks.shape[-2], x.shape[1]
    config, layout = merge_config(x.dtype), MaskLayout.of(masks)
    out = x.new_empty(images, rows, dim)
    usable, _ = token_states(x, (labels >= 0).view(torch.uint8), offsets, longest)
    row_blocks = triton.cdiv(rows, config.block_m)
    feature_blocks = triton.cdiv(dim, config.block_n)
    if images * feature_blocks:
        merge_soft_fwd_kernel[(images * row_blocks * feature_blocks,)](
            x,
            usable,
            x if weights is None else weights,
            offsets,
            counts,
            masks,
            out,
            rows,
            dim,
            eps,
            row_blocks,
            feature_blocks,
            *x.stride(),
            layout.image,
            layout.row,
            layout.start,
            WEIGHTED=weights is not None,
            PRECISION=share_precision(x.dtype),
            BLOCK_C=config.block_m,
            BLOCK_N=config.block_d,
            BLOCK_D=config.block_n,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return out


def merge_hard(
    x: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    rows: int,
    offsets: Tensor,
    longest: int,
) -> Tensor:
    """Means of the members of each label; arguments as in `merge_soft`."""
    images, dim = offsets.shape[0] - 1, x.shape[1]
    config = token_config(x.dtype)
    out = x.new_empty(images, rows, dim)
    usable, _ = token_states(x, (labels >= 0).view(torch.uint8), offsets, longest)
    order, bounds = segments(labels, offsets, rows)
    feature_blocks = triton.cdiv(dim, config.block_d)
    if images * feature_blocks:
        merge_hard_fwd_kernel[(images * rows * feature_blocks,)](
            x,
            usable,
            x if weights is None else weights,
            order,
            bounds,
            out,
            rows,
            dim,
            feature_blocks,
            *x.stride(),
            WEIGHTED=weights is not None,
            BLOCK_N=config.block_n,
            BLOCK_D=config.block_d,
            num_warps=config.num_warps,
        )
    return out


def segments(labels: Tensor, offsets: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Members of each label of each image, one label after the other, tokens ascending.

    Returns:
        (T,) int64 tokens, and (B (rows + 1) + 1,) int64 where each label begins among them; label
        `rows` of an image are its masked tokens.
    """
    token = torch.arange(labels.shape[0], device=labels.device)
    image = torch.searchsorted(offsets[1:], token, right=True)
    label = torch.where(labels < 0, rows, labels)
    key, order = (image * (rows + 1) + label).to(torch.int32).sort(stable=True)
    segment = torch.arange((offsets.shape[0] - 1) * (rows + 1) + 1, device=labels.device)
    return order, torch.searchsorted(key, segment.to(torch.int32))


def unmerge_soft(
    tokens: Tensor, masks: Tensor, counts: Tensor, offsets: Tensor, longest: int, total: int
) -> Tensor:
    """(total, D) mixtures of `tokens` (B, rows, D) by the masks; see `merge_soft`."""
    images, rows, dim = tokens.shape
    config, layout = merge_config(tokens.dtype), MaskLayout.of(masks)
    out = tokens.new_empty(total, dim)
    token_blocks = triton.cdiv(longest, config.block_m)
    feature_blocks = triton.cdiv(dim, config.block_n)
    if images * token_blocks * feature_blocks:
        unmerge_soft_fwd_kernel[(images * token_blocks * feature_blocks,)](
            tokens,
            offsets,
            counts,
            masks,
            out,
            rows,
            dim,
            token_blocks,
            feature_blocks,
            layout.image,
            layout.row,
            layout.start,
            PRECISION=share_precision(tokens.dtype),
            BLOCK_C=config.block_d,
            BLOCK_N=config.block_m,
            BLOCK_D=config.block_n,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return out


def unmerge_hard(tokens: Tensor, labels: Tensor, offsets: Tensor, longest: int) -> Tensor:
    """(T, D) token of each label (T,), of `tokens` (B, rows, D)."""
    images, rows, dim = tokens.shape
    config = token_config(tokens.dtype)
    out = tokens.new_empty(labels.shape[0], dim)
    blocks = triton.cdiv(longest, config.block_n)
    if images * blocks * dim:
        unmerge_hard_fwd_kernel[(images * blocks,)](
            tokens,
            offsets,
            labels,
            out,
            rows,
            dim,
            blocks,
            BLOCK_N=config.block_n,
            BLOCK_D=config.block_d,
            num_warps=config.num_warps,
        )
    return out
