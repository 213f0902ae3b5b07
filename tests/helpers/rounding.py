"""How far results may lie apart that are the same but for the order in which sums were taken.

torch leaves its sums to kernels of MKL and oneDNN, which choose the order by the processor, the
number of threads, the number of rows, and the addresses: weights that were read from a file lie
elsewhere than those that were written. Bits are ours to promise for weights, and for what is
computed twice from the same tensors; for the rest this bound is.

A sum of n products is off by at most n units u = 2^-24 of the largest (Higham, "Accuracy and
stability of numerical algorithms", 2002, section 3.1), in two orders by twice as much, and layers
with norms hand on what went in. The models of these tests have up to 40 such sums in a row, of up
to 64 products: 2 · 40 · 64 · 2^-24 = 3.1e-4 of the largest value.
"""

import torch
from torch import Tensor

SUMS, PRODUCTS = 40, 64
BOUND = 2 * SUMS * PRODUCTS * 2.0**-24


def assert_same_but_for_rounding(found: Tensor, expected: Tensor) -> None:
    """Compares results of tiny models in float32."""
    largest = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=0, atol=BOUND * largest)


def assert_same_weights(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    """Compares parameters and buffers, by their names and to the bit."""
    states = [module.state_dict() for module in (found, expected)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=0, atol=0, msg=name)
