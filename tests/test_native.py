"""The loader of the compiled module; real builds are in packaging/."""

import importlib
import os
import platform
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
            "isas",
            "isa",
        }
        assert _native.load() is module
    else:
        assert "pip install --no-build-isolation -e ." in reason


needs_module = pytest.mark.skipif(
    _native.why_missing() is not None, reason="the compiled module is not there"
)


@needs_module
def test_the_module_has_kernels_for_every_instruction_set():
    module = _native.load()
    x86 = platform.machine() in ("x86_64", "AMD64") and sys.platform != "darwin"
    isas = ["avx512", "avx2", "baseline"] if x86 else ["baseline"]
    assert module.build_info()["isas"] == isas
    assert module.cpu_isa() in isas


@needs_module
def test_the_choice_of_an_instruction_set():
    choose = _native.load().choose_isa
    sets = _native.load().build_info()["isas"]
    for best in range(len(sets)):
        assert choose("", sets[best]) == sets[best]
        for wanted, name in enumerate(sets):
            if wanted >= best:
                assert choose(name, sets[best]) == name
                continue
            named = ", ".join(sets[best:])
            expected = f"SETOK_CPU_CAPABILITY: expected one of {named} on this processor, got"
            with pytest.raises(ValueError, match=f"^{expected} '{name}'$"):
                choose(name, sets[best])
    with pytest.raises(ValueError, match=r"^SETOK_CPU_CAPABILITY: expected one of .*, got 'AVX2'$"):
        choose("AVX2", sets[0])


def _under(capability, program):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"SETOK_CPU_CAPABILITY": capability},
        text=True,
        capture_output=True,
        check=False,
    )


@needs_module
def test_the_environment_limits_the_instruction_set():
    program = """
        import torch
        import setok_kernels as sk
        from setok_kernels import _native
        x = torch.tensor([[[0.0], [0.1], [5.0], [5.1]]])
        labels = sk.cluster_tokens(x, sk.ClusterConfig(k=1), backend="cpp").labels
        print(_native.load().build_info()["isa"], labels.tolist())
    """
    module = _native.load()
    sets = module.build_info()["isas"]
    usable = sets[sets.index(module.cpu_isa()) :]
    for name in usable:
        run = _under(name, program)
        assert run.stdout == f"{name} [[0, 0, 1, 1]]\n", run.stderr
    run = _under("", program)
    assert run.stdout.split()[0] == usable[0], run.stderr


@needs_module
def test_a_wrong_instruction_set_is_an_error_of_every_call():
    program = """
        import torch
        import setok_kernels as sk
        x = torch.zeros(1, 4, 1)
        for call in (sk.cluster_tokens, lambda x: sk.dpc_knn(x, 2)):
            try:
                call(x)
            except ValueError as error:
                print(error)
    """
    run = _under("sse9", program)
    lines = run.stdout.splitlines()
    assert len(lines) == 2, run.stderr
    for line in lines:
        assert line.startswith("SETOK_CPU_CAPABILITY: expected one of ")
        assert line.endswith("got 'sse9'")


def test_an_unknown_instruction_set_is_refused_before_loading(monkeypatch):
    for value in ("", "avx512", "avx2", "baseline"):
        monkeypatch.setenv("SETOK_CPU_CAPABILITY", value)
        _native.check_cpu_capability()
    monkeypatch.delenv("SETOK_CPU_CAPABILITY")
    _native.check_cpu_capability()
    monkeypatch.setenv("SETOK_CPU_CAPABILITY", "AVX2")
    expected = "SETOK_CPU_CAPABILITY: expected one of avx512, avx2, baseline, got 'AVX2'"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        _native.check_cpu_capability()


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


@needs_module
def test_memory_that_is_not_there_is_a_memory_error():
    """Also where a thread of the kernels' own asks for it."""
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
