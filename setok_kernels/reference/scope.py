"""Seed score and scope loop with its alpha masks (SeTok, Algorithm 1)."""

import math

import torch
from torch import Tensor


class _ClampStraightThrough(torch.autograd.Function):
    """Function clamp(x, low, high) with gradient 1 everywhere (GENESIS-V2)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, low, high):
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        return tangent.clone()


def usable_importance(importance: Tensor | None, ok: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return the weights (B, N) in `dtype`, 0 for excluded tokens and invalid weights."""
    if importance is None:
        return None
    # Converted first: a weight beyond the range of `dtype` is infinite there.
    importance = importance.to(dtype)
    return torch.where(ok & (importance >= 0) & importance.isfinite(), importance, 0)


def weighted_score(density: Tensor, delta: Tensor, importance: Tensor | None) -> Tensor:
    """Return (rho_i * delta_i) * w_i, or rho_i * delta_i without importance."""
    score = density * delta
    if importance is None:
        return score
    # An infinite score would make its product with a scope of 0, or its normalised form, NaN.
    return (score * importance).clamp(max=torch.finfo(score.dtype).max)


def seed_score(
    density: Tensor,
    delta: Tensor,
    norm: str | None,
    top: Tensor | None,
    importance: Tensor | None = None,
) -> Tensor:
    """Return s_i = (rho_i * delta_i) * w_i, divided by the image's maximum if `norm` is "max".

    Args:
        density: (B, N) local densities.
        delta: (B, N) seed distances.
        norm: normalisation, "max" or None.
        top: (B,) token of the maximum score; -1 or None to find it here.
        importance: (B, N) weights w from `usable_importance`; None for 1.
    """
    score = weighted_score(density, delta, importance)
    if norm is None:
        return score
    best = score.detach().argmax(1)
    if top is not None:
        best = torch.where(top >= 0, top, best)
    largest = score.gather(1, best[:, None])
    # A subnormal maximum counts as 0: its reciprocal is not finite, and GPUs flush it.
    normal = largest >= torch.finfo(score.dtype).tiny
    return score / torch.where(normal, largest, 1)


def alpha_mask(distance: Tensor, score: Tensor, config) -> Tensor:
    """Return alpha_i from the distance to the seed and the token's own score; shapes broadcast."""
    bandwidth, beta, temperature, offset = (
        torch.as_tensor(v, dtype=score.dtype, device=score.device)
        for v in (config.bandwidth, config.beta, config.temperature, config.offset)
    )
    # phi is 0 far below this bound; it prevents 0 * inf in the gradient of the bandwidth.
    distance = distance.clamp(max=torch.finfo(score.dtype).max ** 0.5)
    if config.kernel == "gaussian":
        phi = torch.exp(-distance / bandwidth)
    elif config.kernel == "laplacian":
        away = distance > 0
        root = torch.where(away, torch.where(away, distance, 1).sqrt(), 0)
        phi = torch.exp(-root / bandwidth)
    else:
        phi = (1 - distance / bandwidth).clamp(min=0)
    if config.alpha == "kernel":
        return _ClampStraightThrough.apply(phi - beta * score, 0.01, 0.99)
    return _sigmoid((phi - offset - beta * score) / temperature)


def _sigmoid(level: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-level)) with the same bits for equal numbers at every position.

    torch.sigmoid rounds differently in the vector body and in the tail of a tensor, so duplicates
    would differ. The clamp keeps the gradient finite; it only changes results below 1e-34.
    """
    limit = 0.9 * math.log(torch.finfo(level.dtype).max)
    return 1 / (1 + torch.exp(-level.clamp(min=-limit)))


def choose_seeds(
    distance: Tensor,
    score: Tensor,
    sigma: Tensor,
    ok: Tensor,
    config,
    budget: Tensor | None = None,
    exact: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run the scope loop for its decisions: seeds (B, max_clusters), -1 for none; counts (B,).

    The loop always runs max_clusters steps, and finished images no longer change, so nothing is
    read back from the device.

    Args:
        distance: (B, N, N) unscaled squared distances.
        score: (B, N) seed scores.
        sigma: (B,) scale of the distances.
        ok: (B, N) bool, False for excluded tokens.
        config: `ClusterConfig` of the clustering.
        budget: (B,) maximum number of seeds of each image; None for max_clusters.
        exact: flag: only the budget, or the end of the eligible tokens, stops the loop.
    """
    image = torch.arange(score.shape[0], device=score.device)
    scope = ok.to(score.dtype)
    eligible, active = ok.clone(), ok.any(1)
    tokens = ok.sum(1).clamp(min=1)
    seeds = []
    for step in range(config.max_clusters):
        seed = (scope * score).masked_fill(~eligible, -1).argmax(1)
        alpha = alpha_mask(sigma[:, None] * distance[image, seed], score, config)
        active = active & eligible.any(1)
        if budget is not None:
            active = active & (step < budget)
        if not exact:
            active = active & ((scope * alpha).sum(1) >= config.min_mass)
        seeds.append(torch.where(active, seed, -1))
        scope = torch.where(active[:, None], scope * (1 - alpha), scope)
        if config.distinct_seeds:
            eligible[image, seed] &= ~active
        if not exact:
            active = active & (scope.sum(1) / tokens > config.stop_residual)
    chosen = torch.stack(seeds, 1)
    return chosen, (chosen >= 0).sum(1)


def scope_masks(
    distance: Tensor,
    score: Tensor,
    sigma: Tensor,
    seeds: Tensor,
    counts: Tensor,
    ok: Tensor,
    valid: Tensor,
    config,
) -> Tensor:
    """Return the masks of given seeds, M_c = z * alpha_c, z <- z * (1 - alpha_c), and the residual.

    Args:
        distance: (B, N, N) unscaled squared distances.
        score: (B, N) seed scores.
        sigma: (B,) scale of the distances.
        seeds: (B, C) seeds, -1 from counts on.
        counts: (B,) number of seeds.
        ok: (B, N) bool, False for excluded tokens.
        valid: (B, N) bool, True for tokens whose masks sum to 1; excluded ones are all residual.
        config: `ClusterConfig` of the clustering.

    Returns:
        (B, C + 1, N) masks.
    """
    live = seeds >= 0
    index = seeds.clamp(min=0)[:, :, None].expand(-1, -1, distance.shape[2])
    alpha = alpha_mask(sigma[:, None, None] * distance.gather(1, index), score[:, None], config)
    alpha = torch.where(live[:, :, None] & ok[:, None], alpha, 0)
    scope = valid.to(score.dtype)
    masks = []
    for step in range(seeds.shape[1]):
        masks.append(scope * alpha[:, step])
        scope = scope * (1 - alpha[:, step])
    rows = torch.stack([*masks, torch.zeros_like(scope)], 1)
    row = torch.arange(rows.shape[1], device=rows.device)
    residual = row == counts[:, None]
    return torch.where(residual[:, :, None], scope[:, None], rows)


def exact_labels(masks: Tensor, seeds: Tensor, counts: Tensor, ok: Tensor) -> Tensor:
    """Return the labels (B, N) of exact=True: a seed has its own row, no token the residual.

    Any other token has the row of its largest mask before the residual, ties lowest. Excluded
    tokens, and all tokens of an image without seeds, have the residual.

    Args:
        masks: (B, C + 1, N) masks.
        seeds: (B, C) seeds, -1 from counts on.
        counts: (B,) number of seeds.
        ok: (B, N) bool, False for excluded tokens.
    """
    row = torch.arange(seeds.shape[1], device=seeds.device)
    token = torch.arange(ok.shape[1], device=seeds.device)
    value = masks[:, :-1].masked_fill(seeds[:, :, None] == token, torch.inf)
    labels = value.masked_fill((row >= counts[:, None])[:, :, None], -1).argmax(1)
    return torch.where(ok & (counts > 0)[:, None], labels, counts[:, None])
