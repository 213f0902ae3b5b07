"""Complete clustering: make the decisions without gradient, then evaluate them with gradient."""

import torch
from torch import Tensor

from setok_kernels import layout
from setok_kernels.config import ClusterConfig
from setok_kernels.reference import delta, density, scope
from setok_kernels.reference.precision import own_dtype
from setok_kernels.result import Clusters, Decisions


@own_dtype
def cluster(
    x: Tensor,
    valid: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    config: ClusterConfig,
    decisions: Decisions | None,
    importance: Tensor | None = None,
    budget: Tensor | None = None,
    exact: bool = False,
) -> Clusters:
    """Cluster padded or packed tokens; the arguments are those of `cluster_tokens`, checked.

    Args:
        x: tokens, (B, N, D), or (T, D) with `cu_seqlens`.
        valid: (B, N) bool or None; padded input only.
        cu_seqlens: (B + 1,) offsets or None.
        max_seqlen: maximum number of tokens of an image in packed input.
        config: options of the clustering.
        decisions: decisions to replay, in the layout of `x`; None to make new ones.
        importance: (B, N) or (T,) weight of each token in its seed score; None for 1.
        budget: (B,) int64 maximum number of seeds of each image; None for `config.max_clusters`.
        exact: flag: the loop stops at the budget only, and labels never name the residual.
    """
    if cu_seqlens is None:
        return _cluster_padded(x, valid, config, decisions, importance, budget, exact)
    assert max_seqlen is not None
    total = x.shape[0]
    x = layout.pad(x, cu_seqlens, max_seqlen)
    if decisions is not None:
        decisions = Decisions(
            layout.pad(decisions.knn, cu_seqlens, max_seqlen, fill=-1),
            layout.pad(decisions.parent, cu_seqlens, max_seqlen, fill=-1),
            decisions.seeds,
            decisions.counts,
        )
    if importance is not None:
        importance = layout.pad(importance, cu_seqlens, max_seqlen)
    valid = layout.valid_tokens(cu_seqlens, max_seqlen)
    out = _cluster_padded(x, valid, config, decisions, importance, budget, exact)
    labels, rho, dlt, score, knn, parent, masks = (
        layout.unpad(t, cu_seqlens, total)
        for t in (
            out.labels,
            out.density,
            out.delta,
            out.score,
            out.decisions.knn,
            out.decisions.parent,
            out.masks.mT,
        )
    )
    choices = Decisions(knn, parent, out.decisions.seeds, out.counts)
    return Clusters(masks.mT, out.counts, labels, rho, dlt, score, choices)


def _cluster_padded(x, valid, config, decisions, importance, budget, exact):
    batch, tokens, dim = x.shape
    if valid is None:
        valid = torch.ones(batch, tokens, dtype=torch.bool, device=x.device)
    if tokens == 0:
        # argmin and argmax fail on an empty row, so add one masked token.
        x, valid = x.new_zeros(batch, 1, dim), valid.new_zeros(batch, 1)
        importance = None if importance is None else importance.new_zeros(batch, 1)
        if decisions is not None:
            knn = decisions.knn.new_full((batch, 1, config.k), -1)
            decisions = Decisions(knn, knn[:, :, 0], decisions.seeds, decisions.counts)

    ok = valid & x.isfinite().all(2)
    x = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    x = torch.where(ok[:, :, None], x, 0)
    x, exponent = density.normalise_range(x)
    distance = density.squared_distances(x)
    with torch.no_grad():
        if config.distance_scale == "variance":
            # Forward-mode AD stops at `detach`, not at `no_grad`.
            sigma = density.variance_scale(x.detach(), ok)
        else:
            factor = 1 / dim if config.distance_scale == "dim" else config.distance_scale
            sigma = density.fixed_scale(x, exponent, factor)
    if config.distance_scale == "variance":
        # Equal tokens have distance 0, whatever the matrix product rounded to.
        distance = torch.where(sigma[:, None, None] > 0, distance, 0)

    # Each decision is made without gradient, then evaluated with gradient. A replay skips step 1.
    known = decisions is not None
    if known:
        knn, parent = decisions.knn, decisions.parent
        seeds, counts = decisions.seeds, decisions.counts
    else:
        with torch.no_grad():
            knn = density.nearest_neighbours(distance, ok, config.k, config.include_self)
    rho = density.local_density(distance, knn, sigma, ok)
    if not known:
        with torch.no_grad():
            parent = delta.nearest_higher(distance, rho, ok)
    dlt = delta.seed_distance(distance, parent, sigma, ok)
    # The first seed has the maximum score, so a replay also fixes the normaliser.
    top = seeds[:, 0] if known else None
    weight = scope.usable_importance(importance, ok, rho.dtype)
    score = scope.seed_score(rho, dlt, config.score_norm, top, weight)
    if not known:
        with torch.no_grad():
            seeds, counts = scope.choose_seeds(distance, score, sigma, ok, config, budget, exact)
    masks = scope.scope_masks(distance, score, sigma, seeds, counts, ok, valid, config)
    labels = scope.exact_labels(masks, seeds, counts, ok) if exact else masks.argmax(1)
    labels = labels.masked_fill(~valid, -1)

    cut = slice(0, tokens)
    choices = Decisions(knn[:, cut], parent[:, cut], seeds, counts)
    return Clusters(
        masks[:, :, cut],
        counts,
        labels[:, cut],
        rho[:, cut],
        dlt[:, cut],
        score[:, cut],
        choices,
    )
