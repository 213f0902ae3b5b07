"""The loader of the compiled module; real builds are in packaging/."""

import importlib
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from setok_kernels import _native


@pytest.fixture
def attempts(monkeypatch, tmp_path):
    """Makes the next import of the compiled module raise; returns the names asked for."""
    asked = []

    def fail_with(error, note=None):
        def import_module(name):
            asked.append(name)
            raise error

        if note is not None:
            (tmp_path / "note.txt").write_text(note)
        monkeypatch.setattr(_native, "_FAILURE_NOTE", tmp_path / "note.txt")
        monkeypatch.setattr(importlib, "import_module", import_module)
        _native._attempt.cache_clear()
        return asked

    yield fail_with
    _native._attempt.cache_clear()


def test_loaded_or_reasoned():
    reason = _native.why_missing()
    if reason is None:
        module = _native.load()
        assert module.cpu_isa() in ("avx512", "avx2", "baseline")
        assert set(module.build_info()) == {
            "compiler",
            "cxx_standard",
            "openmp",
            "isa",
            "clones",
        }
        assert _native.load() is module
    else:
        assert "pip install --no-build-isolation -e ." in reason


@pytest.mark.skipif(
    "CI" not in os.environ or not shutil.which("c++"), reason="only CI must have the module"
)
def test_ci_tests_the_compiled_backend():
    """Its tests skip themselves where the module is missing, which must not happen unnoticed."""
    assert _native.why_missing() is None


@pytest.mark.parametrize(
    ("error", "note", "cause"),
    [
        (ModuleNotFoundError("no _C"), None, "was not found in .*setok_kernels"),
        (
            ModuleNotFoundError("no _C"),
            "c++: not\nfound\n",
            r"could not be built when the package was installed \(c\+\+: not found\)",
        ),
        (
            ImportError("libgomp.so.1:\ncannot open"),
            None,
            r"was found but does not load \(libgomp.so.1: cannot open\)",
        ),
    ],
    ids=["never built", "failed build", "does not load"],
)
def test_a_failure_is_remembered_with_its_remedy(attempts, error, note, cause):
    asked = attempts(error, note)
    for _ in range(2):
        with pytest.raises(ImportError, match=rf"^setok_kernels\._C {cause}.*; run `pip install"):
            _native.load()
    assert asked == ["setok_kernels._C"]
    assert "\n" not in _native.why_missing()


def test_memory_that_is_not_there_is_a_memory_error():
    """Also where a thread of the kernels' own asks for it."""
    if _native.why_missing() is not None:
        pytest.skip("the compiled module is not there")
    program = """
        import resource, torch
        import setok_kernels as sk
        from setok_kernels import compiled
        torch.set_num_threads(2)
        x = torch.zeros(2, 30000, 1)
        sk.threshold_greedy(x[:, :40], 0.5)
        compiled.DENSE_LIMITS["cpp"] = 10**6
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
        try:
            sk.dpc_knn(x, 2, backend="cpp")
        except MemoryError:
            print("MemoryError")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        text=True,
        capture_output=True,
        check=False,
    )
    assert run.stdout == "MemoryError\n", run.stderr
