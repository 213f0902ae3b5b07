"""From the state of `[SEG]` and the clusters of a picture to a mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setok_kernels.checks import check_float, check_shape, check_tensor
from setok_kernels.config import check_count
from setokim.tokenizer.patch_statistics import resized

# A patch that has less than this in the rows that are there has no logit.
_LEAST = 1e-6


@dataclass(frozen=True)
class MaskLogits:
    """Logits of Q masks: of the clusters, of the patches, of the pixels.

    Attributes:
        clusters: (Q, R), 0 for rows that are not there.
        coarse: (Q, H, W), the clusters' logits mixed in every patch.
        fine: (Q, h, w); a pixel belongs to the mask where it is above 0.
        memberships: (Q, R, H, W), how the patches were mixed: over the rows that are there a patch
            has the sum 1, and 0 for those that are not.
    """

    clusters: Tensor
    coarse: Tensor
    fine: Tensor
    memberships: Tensor


class SegmentationHead(nn.Module):
    """Selects the clusters that a state means, then draws the edge finer than patches are.

    Each cluster's token is compared with the state; a patch gets the logits of its clusters, mixed
    by its memberships. A patch on the edge of an object belongs to one cluster and shows two
    things, which its features know. So a few convolutions, run on the grid and again after each
    doubling of it with the same weights, say what to add to the enlarged logits: nothing at first.
    The weights know neither grid nor size, so any will do.

    Args:
        hidden_dim: of the states.
        token_dim: of the tokens.
        feature_dim: of the encoder's features.
        width: of the comparison and of the convolutions.
        layers: convolutions at each scale.

    Raises:
        TypeError, ValueError: a number is no int of at least 1.
    """

    def __init__(
        self, hidden_dim: int, token_dim: int, feature_dim: int, width: int = 64, layers: int = 1
    ):
        super().__init__()
        self._dims = {"state": hidden_dim, "tokens": token_dim, "features": feature_dim}
        for name, count in (
            ("hidden_dim", hidden_dim),
            ("token_dim", token_dim),
            ("feature_dim", feature_dim),
            ("width", width),
            ("layers", layers),
        ):
            check_count(name, count)
        self.to_query = nn.Sequential(
            nn.LayerNorm(hidden_dim),
            nn.Linear(hidden_dim, width),
            nn.GELU(),
            nn.Linear(width, 2 * width),
        )
        self.to_key = nn.Sequential(nn.LayerNorm(token_dim), nn.Linear(token_dim, width))
        self.to_patch = nn.Sequential(nn.LayerNorm(feature_dim), nn.Linear(feature_dim, width))
        # Beside the patch itself: its logit, and how much it is like the query.
        self.mix = nn.Linear(width + 2, width)
        self.convolutions = nn.ModuleList(_Convolution(width) for _ in range(layers))
        self.to_residual = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.to_residual.weight)
        nn.init.zeros_(self.to_residual.bias)

    def forward(
        self,
        state: Tensor,
        tokens: Tensor,
        occupied: Tensor,
        masks: Tensor,
        features: Tensor,
        grid: tuple[int, int],
        size: tuple[int, int],
    ) -> MaskLogits:
        """Masks for Q queries, each with the rows of its own picture; Q may be 0.

        Args:
            state: (Q, hidden_dim).
            tokens: (Q, R, token_dim).
            occupied: (Q, R) bool, the rows that are there; the others may hold anything.
            masks: (Q, R, N) memberships of the patches, summing to 1 over the rows.
            features: (Q, N, feature_dim) of the encoder.
            grid: (H, W) with H · W = N.
            size: height and width of the masks in pixels, any.

        Returns:
            Logits in the dtype of the weights, or of autocast; they carry gradient to all inputs.

        Raises:
            TypeError, ValueError: shapes or dtypes do not fit.
        """
        self._check(state, tokens, occupied, masks, features, grid, size)
        dtype = self.to_residual.weight.dtype
        tokens = tokens.masked_fill(~occupied[..., None], 0).to(dtype)
        masks = masks.masked_fill(~occupied[..., None], 0).to(dtype)
        # What a patch has in rows that are not there falls to the others.
        masks = masks / masks.sum(1, keepdim=True).clamp(min=_LEAST)

        of_clusters, of_patches = self.to_query(state.to(dtype)).chunk(2, -1)  # (Q, width) each
        clusters = _compare(of_clusters, self.to_key(tokens))  # (Q, R)
        clusters = clusters.masked_fill(~occupied, 0)
        coarse = (clusters[:, None] @ masks.to(clusters)).squeeze(1)  # (Q, N)

        patches = self.to_patch(features.to(dtype))  # (Q, N, width)
        # As a probability: logits have no bound.
        evidence = [coarse.sigmoid(), _compare(of_patches, patches)]
        x = self.mix(torch.cat([patches, torch.stack(evidence, -1).to(patches)], -1))
        x = x.mT.unflatten(-1, grid)  # (Q, width, H, W)
        for scale in _scales(grid, size):
            x = _resized(x, scale)
            for convolution in self.convolutions:
                x = convolution(x)
        coarse = coarse.unflatten(-1, grid)
        residual = _resized(self.to_residual(x), size)  # (Q, 1, h, w)
        fine = (_resized(coarse[:, None], size) + residual).squeeze(1)
        return MaskLogits(clusters, coarse, fine, masks.unflatten(-1, grid))

    def _check(self, state, tokens, occupied, masks, features, grid, size) -> None:
        for name, sides in (("grid", grid), ("size", size)):
            if len(sides) != 2:
                raise ValueError(f"{name}: expected two numbers, got {sides!r}")
            for side in sides:
                check_count(name, side)
        check_tensor("occupied", occupied)
        if occupied.dim() != 2:
            raise ValueError(f"occupied: expected shape (Q, R), got {tuple(occupied.shape)}")
        if occupied.dtype != torch.bool:
            raise TypeError(f"occupied: expected dtype torch.bool, got {occupied.dtype}")
        (queries, rows), patches = occupied.shape, grid[0] * grid[1]
        for name, value, shape in (
            ("state", state, (queries,)),
            ("tokens", tokens, (queries, rows)),
            ("features", features, (queries, patches)),
        ):
            check_shape(name, value, (*shape, self._dims[name]))
            check_float(name, value)
        check_shape("masks", masks, (queries, rows, patches))
        check_float("masks", masks)


class _Convolution(nn.Module):
    """Looks at 3 × 3 neighbours in each channel, then mixes the channels, and adds that."""

    def __init__(self, width: int):
        super().__init__()
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.across = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.across(self.around(x)))


def _compare(queries: Tensor, keys: Tensor) -> Tensor:
    """(Q, M) scaled products of (Q, d) with (Q, M, d)."""
    return (keys @ queries[..., None]).squeeze(-1) * keys.shape[-1] ** -0.5


def _scales(grid: tuple[int, int], size: tuple[int, int]) -> list[tuple[int, int]]:
    """The grid and its doublings up to the size, in each direction for itself."""
    scales = [tuple(grid)]
    while any(now < wanted for now, wanted in zip(scales[-1], size, strict=True)):
        scales.append(
            tuple(
                max(first, min(2 * now, wanted))
                for first, now, wanted in zip(grid, scales[-1], size, strict=True)
            )
        )
    return scales


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(Q, C, H, W) bilinearly at another size, averaged where it is smaller."""
    if any(new < old for new, old in zip(size, maps.shape[-2:], strict=True)):
        # Averaging knows no half precision.
        return resized(maps.float(), tuple(size)).to(maps.dtype)
    # Several times as fast, and the same.
    return F.interpolate(maps, size, mode="bilinear")
