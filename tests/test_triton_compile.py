"""Machine code of every Triton kernel for Hopper, made without a GPU, within its limits."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", exc_type=ImportError)

KERNELS = Path(__file__).parent.parent / "triton/setok_triton"
REPORT = Path(__file__).parent.parent / "bench/compile_report.py"
DOTS = {
    f"{name}_kernel"
    for name in (
        "norms_fwd",
        "distances_fwd",
        "adjacency_fwd",
        "assign_fwd",
        "merge_soft_fwd",
        "unmerge_soft_fwd",
        "seed_rows_bwd",
        "pull_sums_bwd",
        "row_products_bwd",
    )
}
# These make their tiles by a dot where no rows are kept, and read them elsewhere.
WALKS = {"neighbours_fwd_kernel", "parents_fwd_kernel"}
# Bytes that one program may have on an H100, and on the smallest GPUs with its instructions.
MOST_SHARED = 227 * 1024


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """In a process of its own: one that runs kernels in the interpreter cannot compile them."""
    out = tmp_path_factory.mktemp("report") / "compile.json"
    command = [sys.executable, REPORT, "--targets", "90", "--k", "8", "64"]
    command += ["--tokens", "729", "16384", "65536", "--out", out]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    child = subprocess.run(command, text=True, capture_output=True, env=environment, check=False)
    assert child.returncode == 0, child.stderr
    return json.loads(out.read_text())


def describe(row):
    return {k: row[k] for k in ("kernel", "dtype", "tokens", "k", "registers", "spills", "shared")}


@pytest.mark.slow
def test_nothing_spills(rows):
    spilling = [describe(r) for r in rows if r["spills"] or r["stack"]]
    assert not spilling


@pytest.mark.slow
def test_shared_memory_fits(rows):
    assert max(r["shared"] for r in rows) <= MOST_SHARED
    assert min(r["programs_per_multiprocessor"] for r in rows) >= 1


@pytest.mark.slow
def test_dots_run_on_tensor_cores(rows):
    """All of 16-bit features and of emulated float32; "highest" asks for plain float32."""
    dots = [r for r in rows if r["kernel"] in DOTS or (r["kernel"] in WALKS and r["tokens"] > 2048)]
    assert {r["kernel"] for r in dots} == DOTS | WALKS
    for row in dots:
        plain = row["dtype"] == "float32" and row["constants"]["PRECISION"] == "ieee"
        assert row["tensor_cores"] == (None if plain else "wgmma"), describe(row)


@pytest.mark.slow
def test_no_kernel_is_left_out(rows):
    pattern, defined = r"^def (\w+_(?:fwd|bwd)_kernel)\(", set()
    for source in KERNELS.glob("*.py"):
        defined |= set(re.findall(pattern, source.read_text(), re.MULTILINE))
    assert {r["kernel"] for r in rows} == defined
