"""The hard clusterings of one image, once more, in loops over Python numbers.

Written from the docstrings of the public functions, sharing no code with the reference. Distances
and similarities are fractions; only exp and sqrt round.
"""

import math
from fractions import Fraction

from helpers.oracle import exp, pairwise


def nearest_row(distance, i, centres):
    """Row of the centre nearest to token i, ties lowest row; a centre is its own."""
    if i in centres:
        return centres.index(i)
    return min(range(len(centres)), key=lambda c: (distance(i, centres[c]), c))


def dpc_knn(
    tokens, num_clusters=None, threshold=None, k=5, noise=None, min_clusters=1, order="score",
    cap="diameter", importance=None,
):  # fmt: skip
    """Cluster a list of feature rows; `noise` and `importance` are a number per token.

    Returns:
        dict with labels, centres, density, delta, score, knn, parent (lists without padding).
    """
    n, squared = len(tokens), pairwise(tokens)
    if n == 0:
        names = ("labels", "centres", "density", "delta", "score", "knn", "parent")
        return {name: [] for name in names}
    share = 1 / len(tokens[0])
    knn = [sorted(range(n), key=lambda j: (squared[i][j], j))[:k] for i in range(n)]
    density = [
        exp(-share * float(sum(squared[i][j] for j in near) / len(near)))
        for i, near in enumerate(knn)
    ]
    if noise is not None:
        density = [p + e for p, e in zip(density, noise, strict=True)]

    rank = [(-density[i], i) for i in range(n)]
    farthest = [max(row) for row in squared]
    parent, delta = [], []
    for i in range(n):
        above = [j for j in range(n) if rank[j] < rank[i]]
        if cap == "diameter":
            limit = max(farthest)
        else:
            limit = min(farthest[j] for j in range(n) if j not in above)
        parent.append(min(above, key=lambda j: (squared[i][j], j)) if above else -1)
        nearest = min(squared[i][parent[i]], limit) if above else limit
        delta.append(math.sqrt(share * float(nearest)))

    score = [p * d for p, d in zip(density, delta, strict=True)]
    if importance is not None:
        score = [s * w for s, w in zip(score, importance, strict=True)]
    ranked = sorted(range(n), key=lambda i: (-score[i], i))
    centres = [i for i in ranked if threshold is None or score[i] > threshold]
    if not centres:
        centres = ranked[:min_clusters]
    centres = centres[:num_clusters]
    if order == "index":
        centres.sort()
    labels = [nearest_row(lambda i, c: squared[i][c], i, centres) for i in range(n)]
    return dict(
        labels=labels, centres=centres, density=density, delta=delta, score=score, knn=knn,
        parent=parent,
    )  # fmt: skip


def threshold_greedy(tokens, threshold):
    """Cluster a list of feature rows; returns dict with labels and centres."""
    rows = [[Fraction(v) for v in row] for row in tokens]
    n = len(rows)

    def signed_square(i, j):
        """Square of the cosine with its sign, which orders like the cosine."""
        if i == j:
            return Fraction(1)
        dot, *norms = (
            sum(a * b for a, b in zip(rows[p], rows[q], strict=True))
            for p, q in ((i, j), (i, i), (j, j))
        )
        return dot * abs(dot) / (norms[0] * norms[1]) if all(norms) else Fraction(0)

    bound = Fraction(threshold)
    near = [
        {j for j in range(n) if j == i or signed_square(i, j) > bound * abs(bound)}
        for i in range(n)
    ]
    left, centres = set(range(n)), []
    while left:
        centre = min(left, key=lambda i: (-len(near[i]), i))
        centres.append(centre)
        left -= near[centre]
    centres.sort()
    labels = [nearest_row(lambda i, c: -signed_square(i, c), i, centres) for i in range(n)]
    return dict(labels=labels, centres=centres)
