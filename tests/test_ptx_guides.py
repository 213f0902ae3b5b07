"""Compiled kernels with importance, budgets and exact numbers of seeds, executed."""

import pytest

from helpers.emulated import check

pytest.importorskip("triton", exc_type=ImportError)

CASES = [
    "guided integers B,N,D,K=(2, 20, 5, 3) float32 highest dense packed default exact",
    "guided integers B,N,D,K=(2, 20, 5, 3) bfloat16 highest streaming masked default exact",
    "dpc_knn integers B,N,D,K=(2, 20, 8, 3) float32 highest dense masked {'guided': True}",
]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "names"), [(90, CASES), (80, CASES[1:])])
def test_guided_clusters(arch, names):
    check(arch, *names)
