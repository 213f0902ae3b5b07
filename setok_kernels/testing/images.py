"""Iteration over the images of a result, in float64, for the checks of decisions."""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor

from setok_kernels.result import Clusters, HardClusters


@dataclass(frozen=True)
class Image:
    """One image of a result.

    Attributes:
        index: index of the image in the batch.
        span: index of its tokens in (B, N, ...) or (T, ...).
        x: (N, D) float64 features, 0 for excluded tokens.
        ok: (N,) bool, False for excluded tokens (masked or non-finite).
        position: (n,) tokens that are not excluded.
        roundoff: unit roundoff of the accumulation dtype.
        tiny: smallest normal number of the accumulation dtype.
    """

    index: int
    span: int | slice
    x: Tensor
    ok: Tensor
    position: Tensor
    roundoff: float
    tiny: float

    @contextlib.contextmanager
    def named(self):
        """Prefix the messages of failed assertions in the block with the image."""
        try:
            yield
        except AssertionError as error:
            raise AssertionError(f"image {self.index}: {error}") from None

    def compact(self, name: str, tokens: Tensor) -> Tensor:
        """Map tokens of the image to indices among the tokens not excluded; -1 stays -1."""
        number = torch.full((self.ok.shape[0] + 1,), -2, device=self.ok.device)
        number[self.position] = torch.arange(self.position.shape[0], device=self.ok.device)
        number[-1] = -1
        inside = (tokens >= -1) & (tokens < self.ok.shape[0])
        assert inside.all(), f"{name} has a token outside the image"
        tokens = number[tokens]
        assert not (tokens == -2).any(), f"{name} has an excluded token"
        return tokens

    def first(self, flags: Tensor) -> int:
        """Return the first token with a true flag, for flags (n, ...) of tokens not excluded."""
        return int(self.position[flags.nonzero()[0, 0]])


def images(x: Tensor, out: Clusters | HardClusters, token_mask: Tensor | None):
    """Yield each image of a result."""
    wide = torch.finfo(torch.promote_types(x.dtype, torch.float32))
    x = x.detach().reshape(*out.labels.shape, x.shape[-1]).double()
    valid = usable(x, out, token_mask)
    for b in range(out.counts.shape[0]):
        if out.cu_seqlens is None:
            span: int | slice = b
        else:
            span = slice(int(out.cu_seqlens[b]), int(out.cu_seqlens[b + 1]))
        ok = valid[span]
        features = torch.where(ok[:, None], x[span], 0)
        yield Image(b, span, features, ok, ok.nonzero()[:, 0], wide.eps / 2, wide.tiny)


def usable(x: Tensor, out: Clusters | HardClusters, token_mask: Tensor | None) -> Tensor:
    """Return True for tokens neither masked nor non-finite, in the layout of the labels."""
    ok = x.reshape(*out.labels.shape, x.shape[-1]).isfinite().all(-1)
    return ok if token_mask is None else ok & token_mask.reshape(out.labels.shape)
