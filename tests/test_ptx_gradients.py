"""Compiled kernels of the gradients of `cluster_tokens`, executed."""

import pytest
from emulated import check

pytest.importorskip("triton", exc_type=ImportError)

CASES = [
    "gradients B,N,D,K=(2, 20, 5, 3) float32 highest dense",
    "gradients B,N,D,K=(2, 20, 5, 3) bfloat16 highest dense",
]
FEWER = ["gradients B,N,D,K=(2, 20, 5, 3) float16 highest streaming"]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "names"), [(90, CASES), (80, FEWER)])
def test_gradients(arch, names):
    check(arch, *names)
