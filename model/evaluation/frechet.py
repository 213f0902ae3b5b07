"""Fréchet distance between two sets of features: FID for features of Inception.

M. Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash
equilibrium", 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor

from setok_kernels.config import check_count


class FeatureStatistics:
    """Mean and covariance of feature vectors that come in batches, in float64.

    Args:
        dim: number of dimensions of a feature.

    Raises:
        TypeError, ValueError: `dim` is no integer of at least 1.
    """

    def __init__(self, dim: int):
        check_count("dim", dim)
        self._number = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        # Sum of the products of deviations from the mean.
        self._sum = torch.zeros(dim, dim, dtype=torch.float64)

    def __len__(self) -> int:
        """Return the number of features."""
        return self._number

    def add(self, features: Tensor) -> None:
        """Add (S, dim) features.

        Raises:
            ValueError: the shape differs, or a value is not finite.
        """
        dim = len(self._mean)
        if features.dim() != 2 or features.shape[1] != dim:
            got = tuple(features.shape)
            raise ValueError(f"features: expected shape (S, {dim}), got {got}")
        if not features.isfinite().all():
            raise ValueError("features: expected finite numbers, got NaN or infinity")
        if not len(features):
            return
        other = FeatureStatistics(dim)
        values = features.detach().cpu().double()
        other._number, other._mean = len(values), values.mean(0)
        deviations = values - other._mean
        other._sum = deviations.T @ deviations
        self.merge(other)

    def merge(self, other: FeatureStatistics) -> None:
        """Add the features of other statistics, such as those of another process."""
        total = self._number + other._number
        if not other._number:
            return
        apart = other._mean - self._mean
        weight = self._number * other._number / total
        self._sum = self._sum + other._sum + weight * torch.outer(apart, apart)
        self._mean = self._mean + apart * (other._number / total)
        self._number = total

    @property
    def mean(self) -> Tensor:
        """Mean of the features, (dim,)."""
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """Unbiased estimate of the covariance, (dim, dim).

        Raises:
            ValueError: there are fewer than two features.
        """
        if self._number < 2:
            raise ValueError(f"features: expected at least 2, got {self._number}")
        return self._sum / (self._number - 1)


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """Compute |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^(1/2)), at least 0.

    Raises:
        ValueError: a set has fewer than two features, or the dimensions differ.
    """
    if one.mean.shape != other.mean.shape:
        raise ValueError(f"other: expected {len(one.mean)} dimensions, got {len(other.mean)}")
    first, second = one.covariance, other.covariance
    # The root of C1 C2 has the trace of that of R C2 R, R the root of C1, which is symmetric.
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ second @ root
    mixed = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (one.mean - other.mean).square().sum() + first.trace() + second.trace() - 2 * mixed
    return max(0.0, float(distance))
