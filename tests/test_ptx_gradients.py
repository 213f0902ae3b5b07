"""Compiled kernels of the gradients of `cluster_tokens`, executed."""

import pytest

from helpers.emulated import check

pytest.importorskip("triton", exc_type=ImportError)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "names"),
    [
        (90, ["gradients B,N,D,K=(2, 20, 5, 3) float32 highest dense"]),
        (80, ["gradients B,N,D,K=(2, 20, 5, 3) bfloat16 highest dense"]),
    ],
)
def test_gradients(arch, names):
    check(arch, *names)
