"""Output of a visual tokenizer for one image, as files store it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StoredImage:
    """Visual tokens of an image, or its patch features, in place of its pixels.

    n is the number of tokens, N = T · H · W that of patches. Tokens are in the order of their
    rows, those without a member left out. Positions are in units of patches, as in
    `setok_kernels.Packed`.

    Attributes:
        height: height of the image in pixels.
        width: width of the image in pixels.
        grid: (T, H, W) of the patches; T is 1 for an image.
        tokens: (n, D) floating point; None if only features are stored.
        sizes: (n,) int64 number of patches of each token.
        positions: (n, 3) float32 centroid (t, h, w) of the patches of each token.
        seeds: (n,) int64 seed patch of each token; -1 for the residual.
        labels: (N,) int64 token of each patch; None if not stored.
        masks: (n, N) floating point, fraction of each patch in each token; None if not stored.
        features: (N, C) floating point encoder features; None if not stored.

    Raises:
        ValueError: shapes do not fit together.
    """

    height: int
    width: int
    grid: tuple[int, int, int]
    tokens: Tensor | None
    sizes: Tensor
    positions: Tensor
    seeds: Tensor
    labels: Tensor | None = None
    masks: Tensor | None = None
    features: Tensor | None = None

    def __post_init__(self):
        number, patches = len(self.sizes), self.patches
        for name, shape in {
            "tokens": (number, -1),
            "sizes": (number,),
            "positions": (number, 3),
            "seeds": (number,),
            "labels": (patches,),
            "masks": (number, patches),
            "features": (patches, -1),
        }.items():
            value = getattr(self, name)
            if value is None:
                continue
            found = tuple(value.shape)
            if len(found) != len(shape) or any(
                want not in (-1, got) for want, got in zip(shape, found, strict=True)
            ):
                raise ValueError(f"{name}: expected shape {shape}, got {found}")

    @property
    def patches(self) -> int:
        """N."""
        frames, rows, columns = self.grid
        return frames * rows * columns

    @property
    def seed_positions(self) -> Tensor:
        """(n, 3) float32 (t, h, w) of each seed; -1 for the residual."""
        _, rows, columns = self.grid
        frame, inside = self.seeds // (rows * columns), self.seeds % (rows * columns)
        found = torch.stack([frame, inside // columns, inside % columns], -1).float()
        return found.masked_fill((self.seeds < 0)[:, None], -1)
