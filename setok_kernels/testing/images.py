"""One image of a result at a time, in float64: what the judges of decisions look at."""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor

from setok_kernels.result import Clusters, HardClusters


@dataclass(frozen=True)
class Image:
    """One image of a result.

    Attributes:
        index: its number.
        span: what selects its tokens from (B, N, ...) or (T, ...).
        x: (N, D) float64 features, 0 where a token takes no part.
        ok: (N,) bool, which tokens take part: neither masked nor non-finite.
        position: (n,) the tokens that take part.
        roundoff: unit roundoff of the dtype that the features are accumulated in.
        tiny: smallest normal number of that dtype.
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
        """Assertions that fail inside start with the image."""
        try:
            yield
        except AssertionError as error:
            raise AssertionError(f"image {self.index}: {error}") from None

    def compact(self, name: str, tokens: Tensor) -> Tensor:
        """Tokens of the image, -1 for none, as numbers among those that take part."""
        number = torch.full((self.ok.shape[0] + 1,), -2, device=self.ok.device)
        number[self.position] = torch.arange(self.position.shape[0], device=self.ok.device)
        number[-1] = -1
        inside = (tokens >= -1) & (tokens < self.ok.shape[0])
        assert inside.all(), f"{name} names a token that is not there"
        tokens = number[tokens]
        assert not (tokens == -2).any(), f"{name} names a token that takes no part"
        return tokens

    def first(self, flags: Tensor) -> int:
        """The first token that is flagged, of flags (n, ...) of those that take part."""
        return int(self.position[flags.nonzero()[0, 0]])


def images(x: Tensor, out: Clusters | HardClusters, token_mask: Tensor | None):
    """Each image of a result."""
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
    """Which tokens are neither masked nor non-finite, in the layout of the labels."""
    ok = x.reshape(*out.labels.shape, x.shape[-1]).isfinite().all(-1)
    return ok if token_mask is None else ok & token_mask.reshape(out.labels.shape)
