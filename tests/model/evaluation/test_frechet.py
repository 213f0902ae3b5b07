import numpy as np
import pytest
import scipy.linalg
import torch

from setokim.evaluation.frechet import FeatureStatistics, frechet_distance


def statistics(values, *cuts):
    found = FeatureStatistics(values.shape[1])
    for part in torch.from_numpy(values).tensor_split(cuts):
        found.add(part)
    return found


def by_scipy(one, other):
    (first, second) = (np.cov(values, rowvar=False) for values in (one, other))
    root = scipy.linalg.sqrtm(first @ second).real
    apart = one.mean(0) - other.mean(0)
    return apart @ apart + np.trace(first + second - 2 * root)


@pytest.mark.parametrize(("number", "dim"), [(200, 5), (40, 12), (300, 64)])
def test_distance_as_by_scipy(number, dim):
    generator = np.random.default_rng(dim)
    mix = generator.normal(size=(dim, dim))
    one = generator.normal(size=(number, dim))
    other = generator.normal(size=(number + 3, dim)) @ mix + 2
    found = frechet_distance(statistics(one, 7, 50), statistics(other, 1))
    assert found == pytest.approx(by_scipy(one, other), rel=1e-6)


def test_fewer_features_than_dimensions():
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, 5, 8))
    # The covariances have no full rank; the eigenvalues of the product are still right.
    product = np.cov(one, rowvar=False) @ np.cov(other, rowvar=False)
    mixed = np.sqrt(np.linalg.eigvals(product).real.clip(0)).sum()
    apart = one.mean(0) - other.mean(0)
    traces = sum(np.cov(values, rowvar=False).trace() for values in (one, other))
    found = frechet_distance(statistics(one), statistics(other))
    assert found == pytest.approx(apart @ apart + traces - 2 * mixed, rel=1e-4)


def test_by_hand():
    one = np.array([[0.0], [2.0]])  # mean 1, variance 2
    other = np.array([[3.0], [3.0], [9.0]])  # mean 5, variance 12
    expected = 16 + 2 + 12 - 2 * 24**0.5
    assert frechet_distance(statistics(one), statistics(other)) == pytest.approx(expected)
    assert frechet_distance(statistics(one), statistics(one)) == pytest.approx(0, abs=1e-12)


def test_parts_are_the_whole():
    values = np.random.default_rng(1).normal(size=(30, 4)) + 100
    whole, parts = statistics(values), statistics(values, 3, 3, 17)
    assert len(whole) == len(parts) == 30
    torch.testing.assert_close(whole.mean, parts.mean)
    torch.testing.assert_close(whole.covariance, parts.covariance)
    torch.testing.assert_close(whole.covariance, torch.from_numpy(np.cov(values, rowvar=False)))
    merged = statistics(values[:9])
    merged.merge(statistics(values[9:]))
    torch.testing.assert_close(merged.covariance, whole.covariance)


def test_errors():
    found = FeatureStatistics(3)
    with pytest.raises(ValueError, match=r"^features: expected shape \(S, 3\), got \(2, 4\)$"):
        found.add(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"^features: expected finite numbers"):
        found.add(torch.full((1, 3), torch.nan))
    found.add(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"^features: expected at least 2, got 1$"):
        frechet_distance(found, found)
    other = statistics(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"^other: expected 3 dimensions, got 2$"):
        frechet_distance(found, other)
