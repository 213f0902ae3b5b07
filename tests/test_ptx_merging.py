"""Compiled kernels of merging and unmerging, executed forward and backward."""

import pytest

from helpers.emulated import TESTS, check, emulate

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


@pytest.mark.slow
@pytest.mark.parametrize("arch", [90, 80])
def test_the_schedule_of_the_warps_changes_no_bit(arch):
    """In more rows than one product takes, with excluded tokens, in every dtype."""
    script, printed = TESTS / "helpers/merging_digests.py", []
    for seed in (1, 2, 3):
        child = emulate("run", "--arch", arch, "--options", f"seed={seed}", script)
        assert child.returncode == 0, child.stdout
        printed.append([line for line in child.stdout.splitlines() if "torch." in line])
    assert len(printed[0]) == 35
    assert printed[0] == printed[1] == printed[2]
