"""Segmentation head: masks from hidden states of `[SEG]` and the clusters of an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setok_kernels.checks import check_float, check_shape, check_tensor
from setok_kernels.config import check_count
from setokim.tokenizer.patch_statistics import resized

# Min total membership of a patch in the occupied rows; below it the patch's logit fades to 0.
_MIN_MEMBERSHIP = 1e-6


@dataclass(frozen=True)
class MaskLogits:
    """Logits of Q masks at three scales: clusters, patches and pixels.

    Attributes:
        clusters: (Q, R) logits of the clusters, 0 in unoccupied rows.
        coarse: (Q, H, W) logits of the patches, mixed from those of the clusters.
        fine: (Q, h, w) logits of the pixels; above 0 for pixels of the mask.
        memberships: (Q, R, H, W) weights of the mixture, summing to 1 over the occupied rows of a
            patch and 0 in the others.
    """

    clusters: Tensor
    coarse: Tensor
    fine: Tensor
    memberships: Tensor


class SegmentationHead(nn.Module):
    """Head that selects the clusters of an object and refines its boundary within the patches.

    Each cluster's token is compared with the hidden state. A patch gets the logits of its clusters,
    mixed by its memberships. A patch at the boundary of an object belongs to one cluster but shows
    two objects, which its features distinguish. So a few convolutions, run on the grid and again
    after each doubling of it with the same weights, predict a residual of the upsampled logits; 0
    before training. The weights depend on neither grid nor size, so any grid and size will do.

    Args:
        hidden_dim: channels of the hidden states.
        token_dim: channels of the tokens.
        feature_dim: channels of the encoder's features.
        width: channels of the comparison and of the convolutions.
        layers: number of convolutions at each scale.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is less than 1.
    """

    def __init__(
        self, hidden_dim: int, token_dim: int, feature_dim: int, width: int = 64, layers: int = 1
    ):
        super().__init__()
        self._dims = {"hidden_states": hidden_dim, "tokens": token_dim, "features": feature_dim}
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
        # Two more channels: the coarse probability of the patch and its similarity to the query.
        self.mix = nn.Linear(width + 2, width)
        self.convolutions = nn.ModuleList(_Convolution(width) for _ in range(layers))
        self.to_residual = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.to_residual.weight)
        nn.init.zeros_(self.to_residual.bias)

    def forward(
        self,
        hidden_states: Tensor,
        tokens: Tensor,
        occupied: Tensor,
        masks: Tensor,
        features: Tensor,
        grid: tuple[int, int],
        size: tuple[int, int],
    ) -> MaskLogits:
        """Return the masks of Q queries, each over the rows of its own image; Q may be 0.

        Args:
            hidden_states: (Q, hidden_dim) hidden states of the `[SEG]` tokens.
            tokens: (Q, R, token_dim) visual tokens.
            occupied: (Q, R) bool, the rows that hold a token; other rows may hold any values.
            masks: (Q, R, N) memberships of the patches, summing to 1 over the rows.
            features: (Q, N, feature_dim) encoder features of the patches.
            grid: rows and columns of the patches, (H, W) with H · W = N.
            size: height and width of the masks in pixels.

        Returns:
            Logits in the dtype of the weights, or of autocast; they carry gradient to all
            floating-point inputs.

        Raises:
            TypeError: a dtype does not fit.
            ValueError: a shape does not fit.
        """
        self._check(hidden_states, tokens, occupied, masks, features, grid, size)
        dtype = self.to_residual.weight.dtype
        tokens = tokens.masked_fill(~occupied[..., None], 0).to(dtype)
        masks = masks.masked_fill(~occupied[..., None], 0).to(dtype)
        # Memberships in unoccupied rows are redistributed to the occupied ones.
        masks = masks / masks.sum(1, keepdim=True).clamp(min=_MIN_MEMBERSHIP)

        query = self.to_query(hidden_states.to(dtype))
        cluster_query, patch_query = query.chunk(2, -1)  # (Q, width) each
        clusters = _compare(cluster_query, self.to_key(tokens))  # (Q, R)
        clusters = clusters.masked_fill(~occupied, 0)
        coarse = (clusters[:, None] @ masks.to(clusters)).squeeze(1)  # (Q, N)

        patches = self.to_patch(features.to(dtype))  # (Q, N, width)
        # A probability, because logits are unbounded.
        evidence = [coarse.sigmoid(), _compare(patch_query, patches)]
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

    def _check(self, hidden_states, tokens, occupied, masks, features, grid, size) -> None:
        for name, sides in (("grid", grid), ("size", size)):
            if len(sides) != 2:
                raise ValueError(f"{name}: expected (height, width), got {sides!r}")
            for side in sides:
                check_count(name, side)
        check_tensor("occupied", occupied)
        if occupied.dim() != 2:
            raise ValueError(f"occupied: expected shape (Q, R), got {tuple(occupied.shape)}")
        if occupied.dtype != torch.bool:
            raise TypeError(f"occupied: expected dtype torch.bool, got {occupied.dtype}")
        (queries, rows), patches = occupied.shape, grid[0] * grid[1]
        for name, value, shape in (
            ("hidden_states", hidden_states, (queries,)),
            ("tokens", tokens, (queries, rows)),
            ("features", features, (queries, patches)),
        ):
            check_shape(name, value, (*shape, self._dims[name]))
            check_float(name, value)
        check_shape("masks", masks, (queries, rows, patches))
        check_float("masks", masks)


class _Convolution(nn.Module):
    """Residual depthwise-separable 3 × 3 convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.across = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (Q, width, H, W)."""
        return x + F.gelu(self.across(self.around(x)))


def _compare(queries: Tensor, keys: Tensor) -> Tensor:
    """Return (Q, M) scaled dot products of (Q, d) queries and (Q, M, d) keys."""
    return (keys @ queries[..., None]).squeeze(-1) * keys.shape[-1] ** -0.5


def _scales(grid: tuple[int, int], size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the grid and its doublings up to the size; each axis stops at its own limit."""
    scales = [tuple(grid)]
    while any(now < limit for now, limit in zip(scales[-1], size, strict=True)):
        scales.append(
            tuple(
                max(first, min(2 * now, limit))
                for first, now, limit in zip(grid, scales[-1], size, strict=True)
            )
        )
    return scales


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (Q, C, H, W) maps bilinearly, antialiased if an axis shrinks."""
    if any(new < old for new, old in zip(size, maps.shape[-2:], strict=True)):
        # Antialiased resizing has no half precision.
        return resized(maps.float(), tuple(size)).to(maps.dtype)
    # The same values without antialiasing, several times as fast.
    return F.interpolate(maps, size, mode="bilinear")
