"""Metrics of images, groupings and retrieval, computed in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from setok_kernels.checks import check_shape, check_tensor
from setok_kernels.config import check_count, check_number


def psnr(image: Tensor, target: Tensor, peak: float = 1.0) -> Tensor:
    """Compute the peak signal-to-noise ratio of images: 10 log₁₀(peak² / mean squared difference).

    Args:
        image: (B, ...), any real dtype.
        target: (B, ...), the same shape.
        peak: max value of a pixel, such as 1 or 255.

    Returns:
        (B,), float64, in dB; infinite for equal images.

    Raises:
        TypeError, ValueError: the shapes differ, there are no pixels, or the peak is not positive.
    """
    _check_pair("image", image, "target", target)
    check_number("peak", peak, above=0)
    error = (image.double() - target.double()).square().flatten(1).mean(1)  # (B,)
    return 10 * torch.log10(peak**2 / error)


def sharpness(image: Tensor, target: Tensor) -> Tensor:
    """Compute the mean absolute difference of neighbouring pixels, over that of the target.

    1 is as sharp as the target, 0 is flat; noise is sharp too.

    Args:
        image: (B, C, H, W), H and W at least 2.
        target: (B, C, H, W).

    Returns:
        (B,), float64; infinite or NaN for a flat target.

    Raises:
        TypeError, ValueError: the shapes do not fit.
    """
    _check_pair("image", image, "target", target)
    if image.dim() != 4 or min(image.shape[-2:]) < 2:
        raise ValueError(
            f"image: expected shape (B, C, H, W) of at least 2 x 2, got {tuple(image.shape)}"
        )

    def contrast(images: Tensor) -> Tensor:
        down = images.double().diff(dim=-2).abs().flatten(1).sum(1)
        return down + images.double().diff(dim=-1).abs().flatten(1).sum(1)

    return contrast(image) / contrast(target)


def adjusted_rand_index(labels: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute the agreement of two groupings of each image's pixels, corrected for chance.

    With n_ij the pixels in group i of `labels` and j of `truth`, a_i and b_j its sums, n their
    total and C(m) = m (m - 1) / 2 (L. Hubert and P. Arabie, "Comparing partitions", 1985):

        index = Σ C(n_ij),  A = Σ C(a_i),  B = Σ C(b_j),  expected = A B / C(n)
        ARI = (index - expected) / ((A + B) / 2 - expected)

    It is 1 for equal groupings under any labels, even if all pixels are in one group or each is
    alone; random groupings have the expectation 0. The foreground ARI has the mask `truth > 0`.

    Args:
        labels: (B, ...), integers.
        truth: (B, ...), integers, the same shape.
        mask: (B, ...), bool, the same shape: pixels that count; None for all.

    Returns:
        (B,), float64; NaN if no pixel counts.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or there are no pixels.
    """
    _check_labels(labels, truth)
    if mask is None:
        mask = torch.ones_like(truth, dtype=torch.bool)
    check_shape("mask", mask, truth.shape)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected dtype torch.bool, got {mask.dtype}")
    rows = [_ari(x[m], y[m]) for x, y, m in zip(labels, truth, mask, strict=True)]
    return truth.new_tensor(rows, dtype=torch.float64)


def best_overlap_iou(labels: Tensor, truth: Tensor) -> Tensor:
    """Average over the true objects the intersection over union with their best cluster.

    One cluster may be the best of several objects.

    Args:
        labels: (B, ...), integers; every value is a cluster, also 0.
        truth: (B, ...), integers, the same shape; objects are the values above 0.

    Returns:
        (B,), float64, in [0, 1]; NaN without objects.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or there are no pixels.
    """
    _check_labels(labels, truth)
    means = []
    for clusters, objects in zip(labels, truth, strict=True):
        shared = _contingency(clusters, objects)  # (clusters, values of truth)
        union = shared.sum(1, keepdim=True) + shared.sum(0) - shared
        best = (shared / union).amax(0)  # (values of truth)
        means.append(best[objects.unique() > 0].mean())
    return torch.stack(means)


def pearson_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Compute Pearson's correlation: Σ x̃ ỹ / √(Σ x̃² Σ ỹ²), with x̃ = x - mean x, ỹ = y - mean y.

    Args:
        x: (N,), any real dtype.
        y: (N,).

    Returns:
        Scalar float64 in [-1, 1]; NaN if x or y is constant.

    Raises:
        TypeError, ValueError: the shapes do not fit, or N is 0.
    """
    check_tensor("x", x)
    if x.dim() != 1 or x.numel() == 0:
        raise ValueError(f"x: expected shape (N,) with N of at least 1, got {tuple(x.shape)}")
    check_shape("y", y, x.shape)
    # The rounded mean of a constant leaves noise, which would look like a correlation.
    if (x == x[0]).all() or (y == y[0]).all():
        return torch.full((), float("nan"), dtype=torch.float64, device=x.device)
    x, y = (values.double() - values.double().mean() for values in (x, y))
    return ((x @ y) / (x.norm() * y.norm())).clamp(-1, 1)


def recall_at_k(similarity: Tensor, k: int) -> float:
    """Compute the fraction of rows whose own column is among their k highest.

    Ties rank before the own column, so that a constant matrix scores 0 for k < N.

    Args:
        similarity: (N, N), any real dtype: row i and column i belong together.
        k: number of columns to consider, from 1 to N.

    Raises:
        TypeError, ValueError: the matrix is not square or has NaNs, or k does not fit.
    """
    check_tensor("similarity", similarity)
    if similarity.dim() != 2 or len(set(similarity.shape)) != 1 or similarity.numel() == 0:
        raise ValueError(
            f"similarity: expected shape (N, N) with N of at least 1, got {tuple(similarity.shape)}"
        )
    if similarity.isnan().any():
        raise ValueError("similarity: expected numbers, got NaN")
    check_count("k", k)
    if k > len(similarity):
        raise ValueError(f"k: expected at most the number of columns, {len(similarity)}, got {k}")
    # Each row counts its own column as well.
    rank = (similarity >= similarity.diagonal()[:, None]).sum(1)  # (N,)
    return (rank <= k).double().mean().item()


def upsample_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Assign to every pixel the label of the patch that holds its centre.

    Args:
        labels: (..., h, w), one label a patch.
        size: height and width of the result in pixels, at least h and w.

    Returns:
        (..., height, width), the dtype of `labels`.

    Raises:
        TypeError, ValueError: there are no patches, or fewer pixels than patches.
    """
    check_tensor("labels", labels)
    if labels.dim() < 2 or labels.numel() == 0:
        raise ValueError(f"labels: expected shape (..., h, w), got {tuple(labels.shape)}")
    for pixels in size:
        check_count("size", pixels)
    if len(size) != 2 or any(new < old for new, old in zip(size, labels.shape[-2:], strict=True)):
        raise ValueError(f"size: expected at least {tuple(labels.shape[-2:])}, got {size!r}")
    rows, columns = (
        (2 * torch.arange(new, device=labels.device) + 1) * old // (2 * new)
        for new, old in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[..., rows[:, None], columns]


def _contingency(x: Tensor, y: Tensor) -> Tensor:
    """Count the pixels of each pair of values, (values of x, values of y) float64, ascending."""
    x_values, x = x.unique(return_inverse=True)
    y_values, y = y.unique(return_inverse=True)
    shape = (len(x_values), len(y_values))
    keys = (x * shape[1] + y).flatten()
    return torch.bincount(keys, minlength=shape[0] * shape[1]).view(shape).double()


def _ari(x: Tensor, y: Tensor) -> float:
    if x.numel() == 0:
        return float("nan")
    shared = _contingency(x, y)
    index, a, b, total = (
        (counts * (counts - 1) / 2).sum().item()
        for counts in (shared, shared.sum(1), shared.sum(0), shared.sum())
    )
    # Equal groupings include all those for which the denominator below vanishes.
    if index == a == b:
        return 1.0
    expected = a * b / total
    return (index - expected) / ((a + b) / 2 - expected)


def _check_labels(labels: Tensor, truth: Tensor) -> None:
    _check_pair("labels", labels, "truth", truth)
    for name, value in (("labels", labels), ("truth", truth)):
        if value.is_floating_point() or value.is_complex():
            raise TypeError(f"{name}: expected integers, got {value.dtype}")


def _check_pair(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    check_tensor(name, value)
    if value.dim() < 2 or value.numel() == 0:
        raise ValueError(f"{name}: expected shape (B, ...) with pixels, got {tuple(value.shape)}")
    check_shape(other_name, other, value.shape)
