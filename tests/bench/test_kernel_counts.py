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

COUNTS = roofline.load_counts()


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


@pytest.mark.slow
def test_no_kernel_executes_more_than_before(gate):
    """After a change that is worth it: `make kernel-counts`."""
    assert kernel_counts.grown(gate["gate"], COUNTS["gate"]) == []


@pytest.mark.slow
def test_growth_by_more_than_a_tenth_is_seen(gate):
    counted, committed = gate["gate"], copy.deepcopy(gate["gate"])
    name = max(committed["kernels"], key=lambda n: committed["kernels"][n]["issue"])
    committed["kernels"][name]["issue"] *= 0.92
    assert kernel_counts.grown(counted, committed) == []
    committed["kernels"][name]["issue"] *= 0.92
    (line,) = kernel_counts.grown(counted, committed)
    assert line.startswith(f"{name}: issue ")


@pytest.mark.slow
def test_the_machine_code_is_about_as_long_as_the_ptx(gate):
    """Two counts of the same run: the emulator's, and that of the code made of it."""
    for name, found in gate["gate"]["kernels"].items():
        assert 0.6 < found["issue"] / found["ptx"] < 1.4, name


@pytest.mark.slow
def test_each_image_of_a_batch_costs_as_much_as_one(gate):
    """Which is how the model gets from the counts of one to those of 64."""
    one, of_three = gate["gate"]["kernels"], gate["gate_of_three"]["kernels"]
    assert set(one) == set(of_three)
    for name, found in of_three.items():
        assert found["launches"] == one[name]["launches"]
        if name == "prepare_fwd":
            # One program for the whole batch.
            assert found["programs"] == pytest.approx(1 / 3, rel=1e-3)
            continue
        assert found["programs"] == one[name]["programs"]
        # Other tokens have other peaks.
        assert found["issue"] == pytest.approx(one[name]["issue"], rel=0.1), name
        assert found["chain_l2"] == pytest.approx(one[name]["chain_l2"], rel=0.1), name


def test_a_new_kernel_and_a_new_launch_are_seen():
    committed = copy.deepcopy(COUNTS["gate"])
    name = next(iter(committed["kernels"]))
    del committed["kernels"][name]
    committed["torch_kernels"] -= 1
    lines = kernel_counts.grown(COUNTS["gate"], committed)
    assert [line.partition(":")[0] for line in lines] == [name, "torch"]


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
