"""Machine code of every Triton kernel for Hopper, made without a GPU, within its limits."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", exc_type=ImportError)

# Prints what the launches of each case depend on: (tokens, D, K, images, clusters).
KEYS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch, compile_report
for case in json.loads(sys.argv[2]):
    launches = compile_report.launches(torch.bfloat16, *case)
    print(json.dumps(sorted(repr((l.name, l.signature, l.constants, l.options,
        l.multiples_of_16)) for l in launches)))
"""
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
        "seed_sums_bwd",
        "features_bwd",
        "row_products_bwd",
    )
}
# These make their tiles by a dot where no rows are kept, and read them elsewhere.
WALKS = {"neighbours_fwd_kernel", "parents_fwd_kernel"}
# Bytes that one program may have on an H100, and on the smallest GPUs with its instructions.
MOST_SHARED = 227 * 1024


# Makes the committed report again from what it says: argv is (folder of the script, file).
REWRITE = """
import json, pathlib, sys
sys.path.insert(0, sys.argv[1])
import compile_report
rows = json.loads(pathlib.Path(sys.argv[2]).read_text())
sys.stdout.write(compile_report.format_rows(rows))
"""


def test_a_report_has_one_row_a_line():
    """Reviews and merges go by lines."""
    file = REPORT.parent / "results/triton-compile.json"
    first, *lines, last = file.read_text().splitlines()
    rows = json.loads(file.read_text())
    assert len(rows) > 300 and (first, last) == ("[", "]")
    assert [json.loads(line.rstrip(",")) for line in lines] == rows
    again = compiling([sys.executable, "-c", REWRITE, REPORT.parent, file])
    assert again == file.read_text()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """In a process of its own: one that runs kernels in the interpreter cannot compile them."""
    out = tmp_path_factory.mktemp("report") / "compile.json"
    command = [sys.executable, REPORT, "--targets", "90", "--k", "8", "64"]
    command += ["--tokens", "729", "16384", "65536", "--out", out]
    compiling(command)
    return json.loads(out.read_text())


def compiling(command):
    """What a process without the interpreter prints."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    child = subprocess.run(command, text=True, capture_output=True, env=environment, check=False)
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_nothing_is_compiled_anew_for_another_count():
    """Tokens, images, neighbours and clusters, up to the powers of two that fill a block.

    And D, as long as it is a multiple of 16; rows of features are then read 16 bytes at a time.
    """
    dense = [(729, 1152, 16, 4, 64), (1024, 256, 9, 16, 48), (577, 768, 13, 1, 1)]
    streaming = [(16384, 1152, 16, 4, 64), (12001, 384, 9, 17, 63)]
    cases = json.dumps([*dense, *streaming, (729, 1160, 16, 4, 64)])
    printed = compiling([sys.executable, "-c", KEYS, REPORT.parent, cases])
    first, *others, first_streamed, other_streamed, uneven = map(json.loads, printed.splitlines())
    assert len(first) > 30 and all(other == first for other in others)
    assert len(first_streamed) > 30 and other_streamed == first_streamed
    # With and without a budget, and with an exact one.
    assert sum("scope_step" in key for key in first_streamed) == 3
    assert uneven != first


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
def test_features_are_read_in_wide_loads(rows):
    """One load takes several features of 16 bits; nothing else has 16 bits."""
    short = [describe(r) for r in rows if r["dtype"] != "float32" and r["loads_of_2_bytes"]]
    assert not short


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
