"""Faults planted into the kernels are found by executing them as compiled code."""

import shutil

import pytest

from helpers.emulated import ROOT, emulate

pytest.importorskip("triton", exc_type=ImportError)

TIES = "cluster duplicates B,N,D,K=(2, 35, 9, 3) float16 highest dense packed"
PEAKS = "cluster vit B,N,D,K=(1, 130, 100, 5) bfloat16 highest dense"
FAULTS = {
    "a removed barrier": (
        "image.py",
        "    # Other warps read the stored indices.\n    tl.debug_barrier()\n",
        "",
        PEAKS,
        "race-in-global image_fwd_kernel",
    ),
    "a shifted mask": (
        "select.py",
        "(b_group < groups) & m_m[:, None]",
        "(b_group < groups - 1) & m_m[:, None]",
        TIES,
        "AssertionError",
    ),
    "a wrong tie": (
        "select.py",
        "b_first = tl.min(tl.where(m_min, o_n, FAR_INDEX), axis=1)",
        "b_first = tl.max(tl.where(m_min, o_n, -1), axis=1)",
        TIES,
        "AssertionError",
    ),
    "a load one past the end": (
        "select.py",
        "m_m = o_m < n\n",
        "m_m = o_m <= n\n",
        TIES,
        "out-of-bounds select_fwd_kernel",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault, tmp_path):
    file, right, wrong, case, finding = FAULTS[fault]
    package = tmp_path / "setok_triton"
    shutil.copytree(ROOT / "triton/setok_triton", package)
    text = (package / file).read_text()
    assert text.count(right) == 1, f"{file} has changed: plant this fault elsewhere"
    (package / file).write_text(text.replace(right, wrong))
    child = emulate("check", "--arch", 90, "--only", case, path=(tmp_path,))
    assert child.returncode == 1, child.stdout
    assert finding in child.stdout, child.stdout
