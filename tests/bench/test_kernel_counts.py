"""What the compiled kernels execute does not grow unseen."""

import copy
import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", exc_type=ImportError)

from setok_bench import kernel_counts, roofline
from setok_bench.machine import H200
from setok_bench.passes import PASSES

COUNTS = roofline.load_counts()
PASSED = list(PASSES)


def run(*options):
    """In a process of its own: this one runs kernels in the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, kernel_counts.__file__, *options]
    return subprocess.run(command, text=True, capture_output=True, env=environment, check=False)


@pytest.fixture(scope="module")
def gate():
    if importlib.util.find_spec("ptxemu") is None:
        pytest.skip("the emulator, tests/ptxemu, is not there")
    child = run("--gate")
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    versions = [r["versions"].get("triton") for r in (found, COUNTS)]
    if versions[0] != versions[1]:
        pytest.skip(f"counted with triton {versions[1]}, here is {versions[0]}")
    return found


def of_pass(cases, name):
    (found,) = (case for case in cases if case["pass"] == name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSED)
def test_no_kernel_executes_more_than_before(gate, name):
    """After a change that is worth it: `make kernel-counts`."""
    counted, committed = (of_pass(found["gates"], name) for found in (gate, COUNTS))
    assert counted["kernels"]
    assert kernel_counts.grown(counted, committed) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSED)
def test_growth_by_more_than_a_tenth_is_seen(gate, name):
    counted = of_pass(gate["gates"], name)
    committed = copy.deepcopy(counted)
    name = max(committed["kernels"], key=lambda n: committed["kernels"][n]["issue"])
    committed["kernels"][name]["issue"] *= 0.92
    assert kernel_counts.grown(counted, committed) == []
    committed["kernels"][name]["issue"] *= 0.92
    (line,) = kernel_counts.grown(counted, committed)
    assert line.startswith(f"{name}: issue ")


@pytest.mark.slow
def test_the_machine_code_is_about_as_long_as_the_ptx(gate):
    """Two counts of the same run: the emulator's, and that of the code made of it."""
    for case in gate["gates"]:
        for name, found in case["kernels"].items():
            assert 0.5 < found["issue"] / found["ptx"] < 1.75, (case["pass"], name)


@pytest.mark.slow
@pytest.mark.parametrize("passed", kernel_counts.BATCHES)
def test_each_image_of_a_batch_costs_as_much_as_one(gate, passed):
    """Which is how the model gets from the counts of one to those of 64."""
    one, of_three = (
        of_pass(gate[found], passed)["kernels"] for found in ("gates", "gates_of_three")
    )
    assert set(one) == set(of_three)
    for name, found in of_three.items():
        assert found["launches"] == one[name]["launches"]
        if found["programs"] == pytest.approx(1 / 3, rel=1e-3):
            # One program for the whole batch, which writes a few numbers.
            assert found["issue"] < 1000, name
            continue
        assert found["programs"] == one[name]["programs"]
        # Other tokens have other peaks.
        assert found["issue"] == pytest.approx(one[name]["issue"], rel=0.02), name
        assert found["chain_l2"] == pytest.approx(one[name]["chain_l2"], rel=0.1), name


def test_a_new_kernel_and_a_new_launch_are_seen():
    counted = of_pass(COUNTS["gates"], "forward")
    committed = copy.deepcopy(counted)
    name = next(iter(committed["kernels"]))
    del committed["kernels"][name]
    committed["torch_kernels"] -= 1
    lines = kernel_counts.grown(counted, committed)
    assert [line.partition(":")[0] for line in lines] == [name, "torch"]


REREAD = """
import json, torch
from dataclasses import asdict
from setok_bench import kernel_counts
kernel_counts.find_emulator()
from ptxemu import driver
from ptxemu.plain_kernels import read_again
found = {}
for name, size, cache in (("kept", 4096, ""), ("past", 4096, ".cg"), ("large", 98304, "")):
    sources = []
    with driver.emulated(90) as emulator:
        emulator.edit = lambda ptx: sources.append(ptx) or ptx
        out = torch.empty(2 * 1024)
        read_again[(2,)](torch.ones(size), out, size, 7, BLOCK=1024, CACHE=cache)
        counted = kernel_counts.KernelCount()
        kernel_counts.add_launch(counted, emulator.records[0], sources[0], 0)
        found[name] = asdict(counted)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_what_a_program_reads_again():
    """Two programs read 16 KB, or 384 KB, seven and eight times."""
    if importlib.util.find_spec("ptxemu") is None:
        pytest.skip("the emulator, tests/ptxemu, is not there")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    child = subprocess.run(
        [sys.executable, "-c", REREAD], text=True, capture_output=True, env=environment, check=False
    )
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    for name, size, kept in (("kept", 16384, 15), ("past", 16384, 0), ("large", 393216, 15)):
        count = found[name]
        assert count["read_bytes"] == 15 * size and count["kept_bytes"] == kept * size
        first = 2 * size if kept else 0
        assert count["first_bytes"] == first == 2 * count["longest_first_bytes"]
        # A program of eight turns, and the mean of that and one of seven.
        assert count["longest_l2"] == pytest.approx(count["chain_l2"] * 16 / 15, rel=0.02)
        assert count["longest_l1"] < count["longest_l2"] < count["longest_memory"]
    hits = {name: roofline.l1_hits(count, 1, H200) for name, count in found.items()}
    assert hits == {"kept": pytest.approx(13 / 15), "past": 0, "large": 0}


def test_without_the_emulator_it_says_so(tmp_path):
    """A copy of the benchmarks outside of a checkout has no tests beside it."""
    code = (
        "import sys, pathlib\n"
        "from setok_bench import kernel_counts\n"
        f"kernel_counts.EMULATOR = pathlib.Path({str(tmp_path)!r})\n"
        "sys.modules['ptxemu'] = None\n"
        "kernel_counts.find_emulator()"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, check=False
    )
    expected = f"RuntimeError: kernel counts: expected the emulator in {tmp_path / 'ptxemu'}"
    assert child.returncode == 1 and expected in child.stderr


def test_a_process_with_triton_is_refused():
    with pytest.raises(RuntimeError, match="expected a process without triton"):
        kernel_counts.find_emulator()
