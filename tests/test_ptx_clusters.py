"""Compiled kernels of `cluster_tokens`, executed: right, without races, within their memory."""

import pytest

from helpers.emulated import check

pytest.importorskip("triton", exc_type=ImportError)

# Three precisions of float32, both 16-bit types, odd sizes and ties; every layout.
CASES = [
    "cluster vit B,N,D,K=(2, 5, 8, 2) float32 high dense packed",
    "cluster vit B,N,D,K=(2, 33, 48, 3) float32 highest dense packed",
    "cluster vit B,N,D,K=(2, 33, 48, 3) float32 medium dense padded",
    "cluster vit B,N,D,K=(2, 33, 48, 3) bfloat16 highest streaming plain",
    "cluster duplicates B,N,D,K=(2, 35, 9, 3) float16 highest dense packed",
    "cluster vit B,N,D,K=(1, 700, 24, 8) bfloat16 highest streaming masked",
    "cluster duplicates B,N,D,K=(1, 700, 24, 8) float32 highest streaming packed",
]
FEWER = [
    "cluster vit B,N,D,K=(1, 65, 64, 8) float32 highest dense unaligned",
    "cluster integers B,N,D,K=(2, 35, 9, 3) bfloat16 highest streaming masked",
]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "names"), [(90, CASES), (80, FEWER)])
def test_clusters(arch, names):
    check(arch, *names)
