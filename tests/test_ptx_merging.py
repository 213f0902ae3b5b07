"""Compiled kernels of merging and unmerging, executed forward and backward."""

import pytest

from helpers.emulated import check

pytest.importorskip("triton", exc_type=ImportError)

CASES = [
    "merge soft B,N,D=(2, 20, 8) 4 clusters float32 highest masked",
    "merge soft B,N,D=(2, 20, 8) 4 clusters float32 high packed",
    # One load for a product on tensor cores and for a sum.
    "merge soft B,N,D=(1, 70, 37) 12 clusters float32 medium padded",
    "merge soft B,N,D=(2, 20, 8) 4 clusters bfloat16 highest plain",
    "merge hard B,N,D=(2, 20, 8) 4 clusters float16 highest masked",
    "merge hard B,N,D=(1, 70, 37) 12 clusters float32 highest packed",
]
FEWER = [
    "merge soft B,N,D=(2, 20, 8) 4 clusters float32 medium unaligned",
    "merge hard B,N,D=(2, 20, 8) 4 clusters bfloat16 highest plain",
]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "names"), [(90, CASES), (80, FEWER)])
def test_merging(arch, names):
    check(arch, *names)
