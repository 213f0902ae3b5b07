"""The clustering of one image, once more, in loops over Python floats.

Written from the definition (docs/algorithm.md), not from the reference, and sharing no code with
it. Only the elementary functions come from torch, because two libraries may differ in the last bit.
"""

import math
from fractions import Fraction

import torch


def exp(value):
    """That of torch."""
    return torch.tensor(value, dtype=torch.float64).exp().item()


def _sigmoid(value):
    return torch.tensor(value, dtype=torch.float64).sigmoid().item()


def pairwise(tokens):
    """Exact squared distances of rows of floats, as fractions."""
    rows = [[Fraction(v) for v in row] for row in tokens]
    return [[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in rows] for p in rows]


def scale(distance, dim, config):
    """sigma for one image."""
    if config.distance_scale == "dim":
        return 1 / dim
    if config.distance_scale == "variance":
        total = sum(sum(row) for row in distance)
        return float(Fraction(len(distance) ** 2) / total) if total else 0.0
    return config.distance_scale


def alpha_of(d, score, config):
    """alpha for scaled distance d."""
    h = config.bandwidth
    if config.kernel == "gaussian":
        phi = exp(-d / h)
    elif config.kernel == "laplacian":
        phi = exp(-math.sqrt(d) / h)
    else:
        phi = max(0.0, 1 - d / h)
    if config.alpha == "kernel":
        return min(max(phi - config.beta * score, 0.01), 0.99)
    return _sigmoid((phi - config.offset - config.beta * score) / config.temperature)


def cluster(tokens, config, forced_seeds=None, importance=None, budget=None, exact=False):
    """Cluster a list of feature rows; `forced_seeds` replaces the choice of seeds and the stop.

    Args:
        tokens: rows of features.
        config: options of the clustering.
        forced_seeds: seeds in place of the choice.
        importance: a weight per token.
        budget: maximum number of seeds, in place of the config's.
        exact: flag: only the budget stops.

    Returns:
        dict with knn, parent, seeds (lists without padding), density, delta, score, masks
        (seeds' rows and the residual), labels.
    """
    n = len(tokens)
    if n == 0:
        return dict(
            knn=[], parent=[], seeds=[], density=[], delta=[], score=[], masks=[[]], labels=[]
        )
    squared = pairwise(tokens)
    sigma = scale(squared, len(tokens[0]), config)
    dist = [[sigma * float(v) for v in row] for row in squared]

    knn, density = [], []
    for i in range(n):
        others = [j for j in range(n) if j != i or config.include_self]
        others.sort(key=lambda j: (squared[i][j], j))
        near = others[: config.k]
        knn.append(near)
        mean = sum(squared[i][j] for j in near) / len(near) if near else Fraction(0)
        density.append(exp(-sigma * float(mean)))

    parent, delta = [], []
    for i in range(n):
        above = [j for j in range(n) if (-density[j], j) < (-density[i], i)]
        if above:
            best = min(above, key=lambda j: (squared[i][j], j))
            parent.append(best)
            delta.append(dist[i][best])
        else:
            parent.append(-1)
            delta.append(max(dist[i]))

    score = [r * d for r, d in zip(density, delta, strict=True)]
    if importance is not None:
        score = [s * w for s, w in zip(score, importance, strict=True)]
    budget = config.max_clusters if budget is None else budget
    if config.score_norm == "max" and max(score) > 0:
        top = max(score)
        score = [s / top for s in score]

    z, used, seeds, masks = [1.0] * n, set(), [], []
    while True:
        if forced_seeds is not None:
            if len(seeds) == len(forced_seeds):
                break
            seed = forced_seeds[len(seeds)]
        else:
            free = [i for i in range(n) if not (config.distinct_seeds and i in used)]
            if not free or len(seeds) == budget:
                break
            seed = min(free, key=lambda i: (-(z[i] * score[i]), i))
        alpha = [alpha_of(dist[seed][i], score[i], config) for i in range(n)]
        mask = [z[i] * alpha[i] for i in range(n)]
        if forced_seeds is None and not exact and sum(mask) < config.min_mass:
            break
        seeds.append(seed)
        used.add(seed)
        masks.append(mask)
        z = [z[i] * (1 - alpha[i]) for i in range(n)]
        if forced_seeds is None and not exact and sum(z) / n <= config.stop_residual:
            break
    masks.append(z)
    rows = len(seeds) if exact and seeds else len(masks)
    labels = [max(range(rows), key=lambda c: (masks[c][i], -c)) for i in range(n)]
    if exact:
        labels = [seeds.index(i) if i in seeds else label for i, label in enumerate(labels)]
    return dict(
        knn=knn, parent=parent, seeds=seeds, density=density, delta=delta, score=score,
        masks=masks, labels=labels,
    )  # fmt: skip
