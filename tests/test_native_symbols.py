"""What the objects of an instruction set define: nothing that the linker could take for others.

An inline function compiled with AVX-512 may be the copy that is kept for every caller, and a
processor without AVX-512 dies of it.
"""

import platform
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
X86 = platform.machine() in ("x86_64", "AMD64")
X86_SETS = ["avx512bf16", "avx512", "avx2", "baseline"]

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not (COMPILER and shutil.which("nm")),
    reason="needs Linux, where nm tells weak symbols apart, and a C++ compiler",
)

# Put behind the kernels: inline functions, one by its address and one by a call.
PLANTED = """
#include <algorithm>
inline int planted(int x) { return x + 1; }
int (*volatile taken)(int) = planted;
int called(const int& a, const int& b) { return std::max(a, b); }
"""


@pytest.fixture(scope="module")
def build():
    """What csrc/build.py defines."""
    return runpy.run_path(str(ROOT / "csrc/build.py"))


def weak_symbols(build, isa, level, tmp_path, more=""):
    """Names of the weak functions and objects that the kernels of a set define."""
    source, compiled = tmp_path / "source.cpp", tmp_path / "source.o"
    source.write_text(f'#include "{build["KERNELS"]}"\n{more}')
    jobs = build["Build"](tmp_path).kernels()
    flags = [*build["FLAGS"], *next(job.flags for job in jobs if job.name == f"{isa}.o")]
    command = [COMPILER, *flags, level, "-c", source, "-o", compiled]
    subprocess.run(command, check=True)
    listed = subprocess.run(
        ["nm", "-C", "--defined-only", compiled], text=True, capture_output=True, check=True
    ).stdout
    assert re.search(rf" [DRS] _?setok::{isa}::kFloat$", listed, re.MULTILINE), listed
    return re.findall(r"^\w+ [VvWwu] (.*)$", listed, re.MULTILINE)


@needs_compiler
@pytest.mark.parametrize("isa", X86_SETS if X86 else ["baseline"])
class TestNoWeakSymbols:
    # Without optimisation nothing is inlined but what always is.
    @pytest.mark.parametrize("level", ["-O0", "-O3"])
    def test_of_the_kernels(self, build, isa, level, tmp_path):
        assert weak_symbols(build, isa, level, tmp_path) == []

    def test_planted_ones_are_found(self, build, isa, tmp_path):
        found = weak_symbols(build, isa, "-O0", tmp_path, PLANTED)
        assert "planted(int)" in found
        assert any("std::" in name and "max" in name for name in found)


@pytest.mark.parametrize(
    ("target", "isas"),
    [
        ("linux-x86_64", X86_SETS),
        ("win-amd64", X86_SETS),
        ("linux-aarch64", ["baseline"]),
        ("macosx-11.0-arm64", ["baseline"]),
    ],
)
def test_what_is_compiled_for_a_platform(build, target, isas, tmp_path):
    jobs = build["Build"](tmp_path, build["target_named"](target)).kernels()
    versions = [job for job in jobs if job.source == build["KERNELS"]]
    assert [job.flags[0] for job in versions] == [f"-DSETOK_ISA={isa}" for isa in isas]
    assert [job.name for job in versions] == [f"{isa}.o" for isa in isas]
    assert not any(job.flags for job in jobs if job not in versions)
    assert len({job.name for job in jobs}) == len(jobs)
