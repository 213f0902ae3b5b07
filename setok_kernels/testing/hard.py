"""Invariants of every hard clustering, and comparison of two of them."""

import torch
from torch import Tensor

from setok_kernels.result import DensityPeaks, HardClusters
from setok_kernels.testing.decisions import assert_equal, flat_importance
from setok_kernels.testing.images import Image, images
from setok_kernels.testing.intervals import Interval

_VALUES = ("density", "delta", "score")


def assert_hard_invariants(
    x: Tensor,
    out: HardClusters,
    token_mask: Tensor | None = None,
    importance: Tensor | None = None,
) -> None:
    """Assert the ranges, padding, dtypes and shapes that hold whatever the decisions are.

    Args:
        x: input of the clustering, any layout.
        out: result of `dpc_knn` or `threshold_greedy`.
        token_mask: mask of valid tokens.
        importance: argument of `dpc_knn`.

    Raises:
        AssertionError: an invariant does not hold; the message has its name and the image.
    """
    _check_tensors(x, out)
    weights = None
    if isinstance(out, DensityPeaks):
        weights = flat_importance(importance, out)
    for image in images(x, out, token_mask):
        with image.named():
            _check_centres(image, out)
            if isinstance(out, DensityPeaks):
                _check_peaks(image, out, None if weights is None else weights[image.span])


def assert_same_hard_clusters(out: HardClusters, expected: HardClusters) -> None:
    """Assert equal labels, centres and counts, and equal neighbours and parents of `DensityPeaks`.

    Raises:
        AssertionError: a tensor differs; the message has its name and the first such element.
    """
    peaks = isinstance(expected, DensityPeaks)
    for name in ("knn", "parent") * peaks + ("centres", "counts", "labels"):
        assert_equal(name, getattr(out, name), getattr(expected, name))


def pair_agreement(labels_a: Tensor, labels_b: Tensor) -> Tensor:
    """Return the fraction of token pairs on which two labelings agree (Rand, 1971).

    They agree on a pair if both put it into one cluster, or both into two clusters. The result does
    not depend on the ids or on the order of the rows.

    Args:
        labels_a: (B, N) integers; -1 for tokens to ignore.
        labels_b: (B, N) integers; -1 for tokens to ignore.

    Returns:
        (B,) float64 in [0, 1]; 1 for images of fewer than two tokens.
    """
    if labels_a.dim() != 2 or labels_a.shape != labels_b.shape:
        raise ValueError(
            "labels_b: expected (B, N) like labels_a, "
            f"got {tuple(labels_b.shape)} and {tuple(labels_a.shape)}"
        )
    both = (labels_a >= 0) & (labels_b >= 0)
    image = both.nonzero()[:, 0]
    # Ids of other implementations may be any integers.
    a, b = (labels[both].unique(return_inverse=True)[1] for labels in (labels_a, labels_b))

    def pairs(*keys):
        # Number of token pairs with equal keys, per image.
        cell, cells = image, 1
        for key in keys:
            cell, cells = cell * image.shape[0] + key, cells * image.shape[0]
        cell, size = cell.unique(return_counts=True)
        inside = size.double() * (size - 1) / 2
        total = torch.zeros(both.shape[0], dtype=torch.float64, device=both.device)
        return total.index_add(0, cell // max(cells, 1), inside)

    every = pairs()
    agreed = every + 2 * pairs(a, b) - pairs(a) - pairs(b)
    return torch.where(every > 0, agreed / every.clamp(min=1), 1)


def judge_labels(image: Image, distance: Interval, centres: Tensor, labels: Tensor) -> None:
    """Assert that labels (n,) are the nearest centres (c,), by bounds of the distance (n, n)."""
    rows = distance[centres]
    own = rows.lo.gather(0, labels[None])[0]
    wrong = own > rows.hi.amin(0)
    assert not wrong.any(), (
        f"label of token {image.first(wrong)} is {int(labels[wrong][0])}, not the nearest centre"
    )


def _check_tensors(x: Tensor, out: HardClusters) -> None:
    packed = out.cu_seqlens is not None
    leading = tuple(x.shape[:1] if packed else (x.shape[0], x.shape[1:-1].numel()))
    count = x.shape[0] if out.cu_seqlens is None else out.cu_seqlens.shape[0] - 1
    shapes = dict(labels=leading, centres=(count, *out.centres.shape[1:2]), counts=(count,))
    dtypes = dict.fromkeys(shapes, torch.int64)
    if isinstance(out, DensityPeaks):
        shapes |= dict(knn=(*leading, *out.knn.shape[-1:]), parent=leading)
        dtypes |= dict.fromkeys(("knn", "parent"), torch.int64)
        shapes |= dict.fromkeys(_VALUES, leading)
        dtypes |= dict.fromkeys(_VALUES, torch.promote_types(x.dtype, torch.float32))
    for name, shape in shapes.items():
        value = getattr(out, name)
        got = tuple(value.shape)
        assert got == shape, f"{name}: shape {got}, expected {shape}"
        assert value.dtype == dtypes[name], f"{name}: dtype {value.dtype}, expected {dtypes[name]}"
        assert not value.requires_grad, f"{name}: carries gradient"


def _check_centres(image: Image, out: HardClusters) -> None:
    centres, labels = out.centres[image.index], out.labels[image.span]
    count, ok = int(out.counts[image.index]), image.ok
    tokens = int(ok.sum())
    limit = min(centres.shape[0], tokens)
    assert min(1, limit) <= count <= limit, f"counts is {count} with {tokens} included tokens"
    assert (centres[count:] == -1).all(), f"centres after the first {count} are not all -1"
    centres = centres[:count]
    assert (image.compact("centres", centres) >= 0).all(), "a centre below counts is -1"
    assert (labels[~ok] == -1).all(), "labels: not -1 on an excluded token"
    outside = (labels[ok] < 0) | (labels[ok] >= count)
    assert not outside.any(), f"label of token {image.first(outside)} is not in [0, {count})"
    rows = labels[centres]
    other = rows != torch.arange(count, device=rows.device)
    assert not other.any(), (
        f"token {int(centres[other][0])}, centre of row {int(other.nonzero()[0])}, "
        f"has label {int(rows[other][0])}"
    )


def _check_peaks(image: Image, out: DensityPeaks, weight: Tensor | None) -> None:
    ok = image.ok
    density, delta, score = (getattr(out, name)[image.span].double() for name in _VALUES)
    for name, value in (("density", density), ("delta", delta), ("score", score)):
        assert value.isfinite().all(), f"{name}: not finite"
        assert (value[~ok] == 0).all(), f"{name}: not 0 on an excluded token"
    assert (delta >= 0).all(), "delta: negative"
    product, finfo = density * delta, torch.finfo(out.score.dtype)
    slack = finfo.eps * product.abs() + finfo.tiny
    if weight is not None:
        # Weights of excluded tokens are not read. A score is at most the largest number.
        weight = torch.where(ok, weight, 0)
        product, slack = (product * weight).clamp(max=finfo.max), 2 * slack * weight + finfo.tiny
    off = (score - product).abs() > slack
    assert not off.any(), (
        f"score of token {int(off.nonzero()[0])} is not density * delta"
        f"{'' if weight is None else ' * importance'}"
    )
    knn, parent = out.knn[image.span], out.parent[image.span]
    for name, value in (("knn", knn), ("parent", parent)):
        assert (value[~ok] == -1).all(), f"{name}: not -1 on an excluded token"
        image.compact(name, value)
    token = torch.arange(ok.shape[0], device=ok.device)
    above = density[parent]
    first = (above > density) | ((above == density) & (parent < token))
    late = (parent >= 0) & ~first
    assert not late.any(), f"parent of token {int(late.nonzero()[0])} does not precede it"
