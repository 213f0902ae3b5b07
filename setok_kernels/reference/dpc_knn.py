"""Hard one-shot clustering with the tokens of highest score as centres (DPC-KNN)."""

import torch
from torch import Tensor

from setok_kernels import layout
from setok_kernels.config import DPCOptions
from setok_kernels.reference import delta, density
from setok_kernels.reference.precision import own_dtype
from setok_kernels.reference.scope import usable_importance, weighted_score
from setok_kernels.result import DensityPeaks
from setok_kernels.selection import choose_centres


@own_dtype
@torch.no_grad()
def dpc_knn(
    x: Tensor,
    valid: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    noise: Tensor | None,
    options: DPCOptions,
    importance: Tensor | None = None,
    budget: Tensor | None = None,
) -> DensityPeaks:
    """Cluster padded or packed tokens; the arguments are those of `dpc_knn`, checked."""
    # `no_grad` does not stop forward-mode AD; `detach` does.
    x = x.detach()
    total = x.shape[0]
    x, valid = layout.pad_tokens(x, valid, cu_seqlens, max_seqlen)

    def padded(weight):
        if weight is None or cu_seqlens is None:
            return None if weight is None else weight.detach()
        return layout.pad(weight.detach(), cu_seqlens, max_seqlen)

    labels, centres, counts, *statistics = _dpc_knn_padded(
        x, valid, padded(noise), options, padded(importance), budget
    )
    if cu_seqlens is not None:
        labels, *statistics = (layout.unpad(t, cu_seqlens, total) for t in (labels, *statistics))
    names = ("density", "delta", "score", "knn", "parent")
    return DensityPeaks(
        labels=labels, centres=centres, counts=counts, **dict(zip(names, statistics, strict=True))
    )


def _dpc_knn_padded(x, valid, noise, options, importance, budget):
    batch, tokens, dim = x.shape
    columns = tokens if options.num_clusters is None else options.num_clusters
    if tokens == 0:
        empty = torch.full((batch, 0), -1, device=x.device)
        value = x.new_empty(batch, 0, dtype=torch.promote_types(x.dtype, torch.float32))
        knn = empty[:, :, None].expand(-1, -1, options.k)
        centres, counts = empty.new_full((batch, columns), -1), empty.new_zeros(batch)
        return empty, centres, counts, value, value, value, knn, empty
    x, ok = usable_tokens(x, valid)
    x, exponent = density.normalise_range(x)
    squared = density.squared_distances(x)
    knn = density.nearest_neighbours(squared, ok, options.k, include_self=True)
    sigma = density.fixed_scale(x, exponent, 1 / dim)
    rho = noisy_density(squared, knn, sigma, ok, noise)
    parent = delta.nearest_higher(squared, rho, ok)
    dlt = capped_distance(squared, parent, rho, exponent, dim, ok, options.cap)
    score = weighted_score(rho, dlt, usable_importance(importance, ok, rho.dtype))
    threshold = -torch.inf if options.threshold is None else options.threshold
    centres, counts = choose_centres(
        score, ok, columns, threshold, options.min_clusters, options.order == "index", budget
    )
    labels = nearest_centre(squared, ok, centres)
    return labels, centres, counts, rho, dlt, score, knn, parent


def usable_tokens(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return widened tokens (B, N, D), 0 where excluded, and (B, N) bool, False where excluded.

    A token is excluded if it is masked or has a non-finite feature.
    """
    ok = x.isfinite().all(2)
    if valid is not None:
        ok = ok & valid
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.where(ok[:, :, None], x, 0), ok


def noisy_density(
    squared: Tensor, knn: Tensor, sigma: Tensor, ok: Tensor, noise: Tensor | None
) -> Tensor:
    """Return the local density plus the noise (B, N), in the dtype of the distances."""
    rho = density.local_density(squared, knn, sigma, ok)
    return rho if noise is None else torch.where(ok, rho + noise.to(rho.dtype), 0)


def capped_distance(
    squared: Tensor,
    parent: Tensor,
    rho: Tensor,
    exponent: Tensor,
    dim: int,
    ok: Tensor,
    kind: str,
) -> Tensor:
    """Return delta (B, N): the distance to the parent, at most the cap; at the top token the cap.

    Args:
        squared: (B, N, N) squared distances of the range-normalised tokens.
        parent: (B, N) parents, -1 for the top token.
        rho: (B, N) density, for the order of the tokens.
        exponent: (B,) exponents from `normalise_range`.
        dim: number of features of a token.
        ok: (B, N) bool, False for excluded tokens, whose delta is 0.
        kind: kind of the cap, "diameter" or "eccentricity".
    """
    near = squared.gather(2, parent.clamp(min=0)[:, :, None])[:, :, 0]
    near = torch.where(parent >= 0, near, torch.inf)
    capped = torch.minimum(near, _cap(squared, rho, ok, kind))
    # The range is restored after the root, because its square may overflow.
    scale = density.fixed_scale(squared, torch.zeros_like(exponent), 1 / dim)
    dlt = (scale[:, None] * capped).sqrt()
    half = exponent // 2
    for part in (half, exponent - half):
        dlt = dlt * torch.exp2(part.to(dlt.dtype))[:, None]
    # An infinite delta at density 0 would make the score NaN.
    return torch.where(ok, dlt.clamp(max=torch.finfo(dlt.dtype).max), 0)


def _cap(squared: Tensor, rho: Tensor, ok: Tensor, kind: str) -> Tensor:
    """Return the upper bound (B, N) of the squared seed distance.

    "diameter" is the maximum distance of the image. "eccentricity" is the minimum eccentricity
    (distance to the farthest token) among tokens of no higher order, the token itself included.
    """
    pair = ok[:, :, None] & ok[:, None, :]
    eccentricity = squared.masked_fill(~pair, 0).amax(2)
    if kind == "diameter":
        return eccentricity.amax(1, keepdim=True)
    own, other = rho[:, :, None], rho[:, None, :]
    index = torch.arange(rho.shape[1], device=rho.device)
    precedes = (other > own) | ((other == own) & (index[None, :] < index[:, None]))
    return torch.where(pair & ~precedes, eccentricity[:, None, :], torch.inf).amin(2)


def nearest_centre(distance: Tensor, ok: Tensor, centres: Tensor) -> Tensor:
    """Return the row (B, N) of the nearest centre, ties lowest row; a centre has its own row.

    Excluded tokens and images without a centre have -1.

    Args:
        distance: (B, N, N) distances of any kind.
        ok: (B, N) bool, False for excluded tokens.
        centres: (B, C) centres, -1 for none.
    """
    live = centres >= 0
    if centres.shape[1] == 0:
        return torch.full_like(ok, -1, dtype=torch.int64)
    rows = centres.clamp(min=0)[:, :, None].expand(-1, -1, distance.shape[2])
    token = torch.arange(distance.shape[2], device=distance.device)
    # A centre keeps its own row even if an equal token is a centre too.
    far = distance.gather(1, rows).masked_fill(centres[:, :, None] == token, -torch.inf)
    labels = far.masked_fill(~live[:, :, None], torch.inf).argmin(1)
    return torch.where(ok & live.any(1, keepdim=True), labels, -1)
