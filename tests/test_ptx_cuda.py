"""The kernels of csrc/cuda as nvcc compiles them: their resources and, executed, their results."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from helpers.emulated import ROOT, emulate
from ptxemu import nvcc
from ptxemu.parser import entries

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
pytestmark = [needs_nvcc, pytest.mark.slow]
# Registers of a thread. A limit of 64 would hold as many blocks of 729 tokens on a multiprocessor
# as 72 do, two, and spill on sm_80. Images of more tokens have more state, and one block.
REGISTERS = {1: 64, 2: 72, 4: 112}


@pytest.fixture(scope="module", params=[90, 80])
def built(request, tmp_path_factory):
    """An architecture, the PTX of each kernel, and what ptxas says of them."""
    made = nvcc.build_script().build_cuda(tmp_path_factory.mktemp("cuda"))
    ptx = next(path for path in made if path.name == f"scope_sm_{request.param}.ptx")
    command = ["nvcc", "-cubin", f"-arch=sm_{request.param}", "-Xptxas", "-v", ptx]
    done = subprocess.run(
        [*map(str, command), "-o", str(ptx.with_suffix(".log.cubin"))],
        text=True,
        capture_output=True,
        check=True,
    )
    return request.param, ptx, done.stderr


def test_nothing_spills_and_the_registers_suffice(built):
    _, _, said = built
    parts = re.findall(
        r"entry function 'scope_fwd_kernel_(\d)'.*?(\d+) bytes stack frame, (\d+) bytes spill "
        r"stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        said,
        re.DOTALL,
    )
    assert {int(part[0]) for part in parts} == set(REGISTERS)
    for tokens, stack, stores, loads, registers in parts:
        assert stack == stores == loads == "0"
        assert int(registers) <= REGISTERS[int(tokens)]


def test_the_step_loop_has_one_barrier(built):
    """It is the only one that is in a loop."""
    _, ptx, _ = built
    for text in entries(ptx.read_text()).values():
        (lines,) = nvcc.step_loops(text)
        loop = "\n".join(lines)
        assert len(re.findall(r"\bbar(?:rier)?\.sync\b", loop)) == 1
        assert "st.global.cs.f32" in loop and "redux.sync.max.s32" in loop
        assert "div." not in loop and "ld.local" not in loop


def test_the_machine_code_has_every_kernel(built):
    _, ptx, _ = built
    code = ptx.with_suffix(".cubin").read_bytes()
    for name in entries(ptx.read_text()):
        assert name.encode() in code


@pytest.mark.parametrize("arch", [90, 80])
def test_results(arch):
    """Right, without findings, and the same for two random seeds of the machine."""
    pytest.importorskip("triton", exc_type=ImportError)
    child = emulate("cuda_check", "--arch", arch, *(["--only", *FEWER] if arch == 80 else []))
    assert child.returncode == 0, child.stdout
    assert "ok   late stop" in child.stdout


FEWER = ["late stop", "exact budgets", "ties", "minimum mass", "kernel"]


def test_every_missing_barrier_is_found():
    pytest.importorskip("triton", exc_type=ImportError)
    child = emulate("cuda_check", "--mutate")
    assert child.returncode == 0, child.stdout
    assert re.search(r"found  barrier \d, in the step loop: .*race-in-shared", child.stdout)
    assert child.stdout.count("found  barrier") == 7


def test_it_executes_less_than_the_kernel_that_it_replaces():
    """Instructions, shuffles and barriers of all warps, as bench/cuda_counts.py counts them."""
    pytest.importorskip("triton", exc_type=ImportError)
    said = subprocess.run(
        [sys.executable, ROOT / "bench/cuda_counts.py", "--shape", "64x300x64"],
        env={"PATH": os.environ["PATH"], "PTXEMU_CACHE": str(ROOT / "build")},
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    for name in ("issue", "shuffle", "barrier"):
        triton, cuda = map(int, re.findall(rf"num_warps.* {name} (\d+)", said))
        assert cuda < 0.7 * triton, said
