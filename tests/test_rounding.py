"""The comparison of results that may differ in the order of their sums."""

import pytest
import torch
from torch import nn

from helpers.rounding import PRODUCTS, SUMS, assert_same_but_for_rounding, assert_same_weights


def in_order(x, matrices, order):
    """A product after the other, in float32, each sum taken term by term in that order."""
    for matrix in matrices:
        total = torch.zeros(len(x), matrix.shape[1])
        for i in order:
            total += x[:, i : i + 1] * matrix[i]
        x = total / total.norm(dim=1, keepdim=True)
    return x


def test_other_orders_of_sums_are_the_same_and_other_weights_are_not():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, PRODUCTS, generator=generator)
    matrices = list(torch.linalg.qr(torch.randn(SUMS, PRODUCTS, PRODUCTS, generator=generator))[0])
    first = in_order(x, matrices, range(PRODUCTS))
    last = in_order(x, matrices, range(PRODUCTS - 1, -1, -1))
    assert not torch.equal(last, first)
    assert_same_but_for_rounding(last, first)
    matrices[3] = matrices[3] * (1 + 0.01 * torch.randn(PRODUCTS, PRODUCTS, generator=generator))
    with pytest.raises(AssertionError):
        assert_same_but_for_rounding(in_order(x, matrices, range(PRODUCTS)), first)


def test_weights_are_compared_to_the_bit_and_by_name():
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    assert_same_weights(other, one)
    with torch.no_grad():
        other.weight[1, 2] = torch.nextafter(other.weight[1, 2], torch.tensor(9.0))
    with pytest.raises(AssertionError, match="weight"):
        assert_same_weights(other, one)
    with pytest.raises(AssertionError):
        assert_same_weights(nn.Linear(3, 2, bias=False), one)
