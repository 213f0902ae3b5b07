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


def seed_score(density: Tensor, delta: Tensor, norm: str | None, top: Tensor | None) -> Tensor:
    """Return s_i = rho_i * delta_i, divided by the image's maximum if `norm` is "max".

    Args:
        density: (B, N) local densities.
        delta: (B, N) seed distances.
        norm: normalisation, "max" or None.
        top: (B,) token of the maximum score; -1 or None to find it here.
    """
    score = density * delta
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
    distance: Tensor, score: Tensor, sigma: Tensor, ok: Tensor, config
) -> tuple[Tensor, Tensor]:
    """Run the scope loop for its decisions: seeds (B, max_clusters), -1 for none; counts (B,).

    The loop always runs max_clusters steps, and finished images no longer change, so nothing is
    read back from the device.
    """
    image = torch.arange(score.shape[0], device=score.device)
    scope = ok.to(score.dtype)
    eligible, active = ok.clone(), ok.any(1)
    tokens = ok.sum(1).clamp(min=1)
    seeds = []
    for _ in range(config.max_clusters):
        seed = (scope * score).masked_fill(~eligible, -1).argmax(1)
        alpha = alpha_mask(sigma[:, None] * distance[image, seed], score, config)
        active = active & eligible.any(1) & ((scope * alpha).sum(1) >= config.min_mass)
        seeds.append(torch.where(active, seed, -1))
        scope = torch.where(active[:, None], scope * (1 - alpha), scope)
        if config.distinct_seeds:
            eligible[image, seed] &= ~active
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
