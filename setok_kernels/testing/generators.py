"""Generators of inputs on which backends tend to fail; all are deterministic in `seed`."""

import torch
from torch import Tensor


def integer_tokens(
    batch: int,
    tokens: int,
    dim: int,
    seed: int = 0,
    high: int = 3,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return (B, N, D) integers in [-high, high], for exact distances with many ties.

    Float32 accumulation is exact as long as 4 * dim * high**2 stays below 2**24.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randint(-high, high + 1, (batch, tokens, dim), generator=generator)
    return sample.to(dtype)


def duplicate_tokens(
    batch: int,
    tokens: int,
    dim: int,
    seed: int = 0,
    distinct: int = 5,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return (B, N, D) integers with only `distinct` different tokens per image, shuffled."""
    base = integer_tokens(batch, distinct, dim, seed, high=7, dtype=dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    pick = torch.randint(distinct, (batch, tokens), generator=generator)
    return base.gather(1, pick[:, :, None].expand(-1, -1, dim))


def one_hot_tokens(
    batch: int, tokens: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return (B, N, D) random unit vectors of the standard basis: all distances are 0 or 2."""
    generator = torch.Generator().manual_seed(seed)
    hot = torch.randint(dim, (batch, tokens), generator=generator)
    return torch.nn.functional.one_hot(hot, dim).to(dtype)


def planted_clusters(
    batch: int,
    tokens: int,
    dim: int,
    clusters: int,
    seed: int = 0,
    noise: float = 0.05,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Return Gaussian blobs of standard deviation `noise` around unit-variance centres.

    Returns:
        (B, N, D) tokens, and (B, N) int64 the blob of each token.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(batch, clusters, dim, generator=generator, dtype=torch.float64)
    member = torch.randint(clusters, (batch, tokens), generator=generator)
    spread = torch.randn(batch, tokens, dim, generator=generator, dtype=torch.float64)
    x = centres.gather(1, member[:, :, None].expand(-1, -1, dim)) + noise * spread
    return x.to(dtype), member


def vit_like_tokens(
    batch: int,
    tokens: int,
    dim: int,
    seed: int = 0,
    huge: int = 2,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return (B, N, D) correlated features with `huge` channels about 50 times the others.

    Vision transformers have a few massive activations. They dominate the norms, so a Gram-matrix
    distance loses most of its bits to cancellation.
    """
    x, _ = planted_clusters(batch, tokens, dim, max(1, tokens // 8), seed, 0.5, torch.float64)
    generator = torch.Generator().manual_seed(seed + 1)
    channel = torch.randperm(dim, generator=generator)[:huge]
    x[..., channel] += 50 * (1 + 0.02 * x[..., channel])
    return x.to(dtype)


def ragged_batch(
    lengths: list[int],
    dim: int,
    seed: int = 0,
    exact: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the same images of different lengths (0 allowed) packed and padded.

    Args:
        lengths: number of tokens of each image.
        dim: number of features.
        seed: random seed.
        exact: flag: integers instead of Gaussian blobs.
        dtype: dtype of the features.

    Returns:
        packed (T, D), cu_seqlens (B + 1,) int32, padded (B, max, D) with garbage after the last
        token of each image, and its token_mask (B, max).
    """
    longest = max(lengths, default=0)
    if exact:
        padded = integer_tokens(len(lengths), longest, dim, seed, dtype=dtype)
    else:
        padded, _ = planted_clusters(len(lengths), longest, dim, 4, seed, 0.3, dtype)
    length = torch.tensor(lengths, dtype=torch.int64).reshape(-1, 1)
    mask = torch.arange(longest) < length
    cu_seqlens = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    cu_seqlens[1:] = length[:, 0].cumsum(0)
    packed = padded[mask]
    padded = torch.where(mask[:, :, None], padded, 1e4)
    return packed, cu_seqlens, padded, mask
