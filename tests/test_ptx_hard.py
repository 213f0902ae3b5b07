"""Compiled kernels of `dpc_knn` and `threshold_greedy`, executed."""

import pytest

from helpers.emulated import check

pytest.importorskip("triton", exc_type=ImportError)

CASES = [
    "dpc_knn planted B,N,D,K=(2, 5, 8, 2) float32 high dense padded",
    "dpc_knn duplicates B,N,D,K=(2, 70, 5, 5) float32 highest streaming",
    "threshold_greedy B,N,D=(1, 33, 48) float32 medium unaligned",
    "threshold_greedy B,N,D=(1, 200, 16) bfloat16 highest plain",
]
FEWER = [
    "dpc_knn planted B,N,D,K=(2, 5, 8, 2) bfloat16 highest dense masked",
    "threshold_greedy B,N,D=(2, 5, 8) float32 highest padded",
]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "names"), [(90, CASES), (80, FEWER)])
def test_hard_clusters(arch, names):
    check(arch, *names)
