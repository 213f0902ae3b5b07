"""Conversion between packed and padded tokens, without a host synchronisation."""

import torch
from torch import Tensor


def pad(packed: Tensor, cu_seqlens: Tensor, max_seqlen: int, fill=0, left: bool = False) -> Tensor:
    """Pad (T, ...) to (B, max_seqlen, ...) with `fill` after, or before, each image's tokens."""
    start, valid = _positions(cu_seqlens, max_seqlen, left)
    if packed.shape[0] == 0:
        return packed.new_full((*valid.shape, *packed.shape[1:]), fill)
    padded = packed[start.clamp(0, packed.shape[0] - 1)]
    keep = valid.reshape(*valid.shape, *[1] * (packed.dim() - 1))
    return padded.masked_fill(~keep, fill)


def pad_tokens(
    x: Tensor, valid: Tensor | None, cu_seqlens: Tensor | None, max_seqlen: int | None
) -> tuple[Tensor, Tensor | None]:
    """Return padded tokens (B, N, D) and their validity (B, N), from padded or packed tokens."""
    if cu_seqlens is None:
        return x, valid
    assert max_seqlen is not None
    return pad(x, cu_seqlens, max_seqlen), valid_tokens(cu_seqlens, max_seqlen)


def unpad(padded: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    """Pack (B, L, ...) to (total, ...), the inverse of `pad`."""
    return padded[token_positions(cu_seqlens, total)]


def token_positions(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Return (total,) image of each packed token, and (total,) its index within the image."""
    offsets = cu_seqlens.long()
    token = torch.arange(total, device=offsets.device)
    if torch.compiler.is_exporting():
        # ONNX has no searchsorted.
        image = (offsets[1:] <= token[:, None]).sum(1)
    else:
        image = torch.searchsorted(offsets[1:], token, right=True)
    return image, token - offsets[image]


def valid_tokens(cu_seqlens: Tensor, max_seqlen: int, left: bool = False) -> Tensor:
    """Return (B, max_seqlen) bool, True where `pad` puts a token."""
    return _positions(cu_seqlens, max_seqlen, left)[1]


def _positions(cu_seqlens, max_seqlen, left):
    cu_seqlens = cu_seqlens.long()
    local = torch.arange(max_seqlen, device=cu_seqlens.device)
    if left:
        start = cu_seqlens[1:, None] - max_seqlen + local
        return start, start >= cu_seqlens[:-1, None]
    start = cu_seqlens[:-1, None] + local
    return start, start < cu_seqlens[1:, None]
