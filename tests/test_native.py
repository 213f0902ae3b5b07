"""The loader of the compiled CPU kernels; real builds are in packaging/."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from setok_kernels import _native

ROOT = Path(__file__).parents[1]
needs_library = pytest.mark.skipif(
    _native.why_missing() is not None, reason="the compiled kernels are not there"
)


@pytest.fixture
def missing(monkeypatch, tmp_path):
    """Loads from a folder of the test's own; returns a function that puts files there."""

    def with_files(note=None, library=None):
        monkeypatch.setattr(_native, "_LIBRARY", tmp_path / "libsetok_kernels.so")
        monkeypatch.setattr(_native, "_FAILURE_NOTE", tmp_path / "note.txt")
        if note is not None:
            (tmp_path / "note.txt").write_text(note)
        if library is not None:
            (tmp_path / "libsetok_kernels.so").write_bytes(library)
        _native.why_missing.cache_clear()

    yield with_files
    monkeypatch.undo()
    _native.why_missing.cache_clear()


def test_loaded_or_reasoned():
    if _native.why_missing() is None:
        assert _native.load().is_file()
        assert str(_native.load()) in torch.ops.loaded_libraries
    else:
        assert "pip install --force-reinstall" in _native.why_missing()


def _under(capability, program):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"SETOK_CPU_CAPABILITY": capability},
        text=True,
        capture_output=True,
        check=False,
    )


@needs_library
def test_the_environment_limits_the_instruction_set():
    program = """
        import torch
        import setok_kernels as sk
        from setok_kernels import _native
        x = torch.tensor([[[0.0], [0.1], [5.0], [5.1]]])
        labels = sk.cluster_tokens(x, sk.ClusterConfig(k=1), backend="cpp").labels
        print(_native.internals().build_info()["isa"], labels.tolist())
    """
    module = pytest.importorskip("setok_kernels._internals")
    sets = module.build_info()["isas"]
    usable = sets[sets.index(module.cpu_isa()) :]
    for name in usable:
        run = _under(name, program)
        assert run.stdout == f"{name} [[0, 0, 1, 1]]\n", run.stderr
    run = _under("", program)
    assert run.stdout.split()[0] == usable[0], run.stderr


@needs_library
def test_a_wrong_instruction_set_is_an_error_of_every_call():
    program = """
        import torch
        import setok_kernels as sk
        # Also where the tasks of the threads are the first to ask for the kernels.
        torch.set_num_threads(2)
        x = torch.zeros(4, 4, 1)
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


@pytest.mark.skipif(
    "CI" not in os.environ or not shutil.which("c++"), reason="only CI must have the library"
)
def test_ci_tests_the_compiled_backend():
    """Its tests skip themselves where the library is missing, which must not happen unnoticed."""
    assert _native.why_missing() is None
    assert _native.internals() is not None


@pytest.mark.parametrize(
    ("files", "cause"),
    [
        ({}, "was not found in "),
        (
            {"note": "c++: not\nfound\n"},
            r"could not be built when the package was installed \(c\+\+: not found\)",
        ),
        ({"library": b"of another age"}, r"was found but does not load \(.*\)"),
    ],
    ids=["never built", "failed build", "does not load"],
)
def test_a_failure_is_remembered_with_its_remedy(missing, monkeypatch, files, cause):
    asked = []
    monkeypatch.setattr(_native, "remedy", lambda: asked.append(1) or "do this")
    missing(**files)
    for _ in range(2):
        with pytest.raises(ImportError, match=rf"^libsetok_kernels\.so {cause}.*; do this$"):
            _native.load()
    assert len(asked) == 1
    assert "\n" not in _native.why_missing()


def installed_from(monkeypatch, origin):
    class Distribution:
        @staticmethod
        def read_text(name):
            assert name == "direct_url.json"
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution)


def test_a_wheel_without_kernels_is_not_installed_again(monkeypatch):
    url = "file:///tmp/setok_kernels-0.1.0-py3-none-any.whl"
    installed_from(monkeypatch, {"url": url, "archive_info": {}})
    said = _native.remedy()
    assert said.startswith("build /tmp/setok_kernels-0.1.0-py3-none-any.whl again where a C++17")
    assert "pip install" not in said and said.endswith("or install a wheel for this platform")


@pytest.mark.parametrize(
    ("origin", "what"),
    [
        (None, "--no-binary setok-kernels setok-kernels"),
        ({"url": "file:///home/me/kernels", "dir_info": {}}, "/home/me/kernels"),
        (
            {"url": "file:///home/me/kernels", "dir_info": {"editable": True}},
            "-e /home/me/kernels",
        ),
        ({"url": "file:///home/me/my%20kernels", "dir_info": {}}, "'/home/me/my kernels'"),
        (
            {"url": "https://host/kernels", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "git+https://host/kernels@abc",
        ),
    ],
    ids=["index", "folder", "editable", "space", "repository"],
)
def test_the_remedy_installs_from_where_it_came(monkeypatch, origin, what):
    installed_from(monkeypatch, origin)
    assert f"`pip install --force-reinstall --no-deps --no-cache-dir {what}`" in _native.remedy()


def run_without_library(program, tmp_path):
    """Runs a program in a copy of the package that has no library."""
    package = tmp_path / "setok_kernels"
    source = Path(_native.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("*.so", "*.dylib", "*.dll"))
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("COV")},
    )


def test_a_call_that_misses_them_warns_once(tmp_path):
    program = """
        import torch
        import setok_kernels as sk
        x = torch.randn(1, 20, 4)
        print("reference asked for", flush=True)
        sk.cluster_tokens(x, backend="reference")
        config = sk.ClusterConfig(k=2, max_clusters=4)
        compiled = torch.compile(
            lambda x: sk.cluster_tokens(x, config).labels, fullgraph=True, backend="eager"
        )
        print(compiled(x).shape)
        print(sk.cluster_tokens(x).labels.shape, sk.cluster_tokens(x).labels.shape)
        try:
            sk.cluster_tokens(x, backend="cpp")
        except RuntimeError as error:
            print(error)
    """
    run = run_without_library(program, tmp_path)
    warned = [line for line in run.stderr.splitlines() if "RuntimeWarning" in line]
    assert len(warned) == 1, run.stderr
    assert "runs on its reference backend" in warned[0] and "pip install" in warned[0]
    assert "backend='cpp' cannot run: libsetok_kernels" in run.stdout


@needs_library
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


@needs_library
@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not there")
def test_the_library_needs_torch_alone():
    """No symbol of Python, none of torch but the listed ones, and none that others could take."""
    listing = subprocess.run(
        ["nm", "-D", _native.load()], text=True, capture_output=True, check=True
    ).stdout
    symbols = [line.split()[-2:] for line in listing.splitlines()]
    needed = {name.split("@")[0] for kind, name in symbols if kind in "Uw"}
    listed = (ROOT / "csrc/abi/functions.h").read_text()
    assert not [name for name in needed if name.startswith(("Py", "_Py"))]
    of_torch = {name for name in needed if "torch" in name}
    assert of_torch and not [name for name in of_torch if f" {name}," not in listed]
    assert not [name for kind, name in symbols if kind not in "Uw"]


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_the_declarations_are_those_of_torch(tmp_path):
    """A compiler refuses two declarations of a C function that differ."""
    headers = Path(torch.__file__).parent / "include"
    both = tmp_path / "both.cpp"
    both.write_text(
        "#define TORCH_TARGET_VERSION 0x020b000000000000ULL\n"
        "#include <torch/csrc/stable/c/shim.h>\n"
        f'#include "{ROOT / "csrc/abi/functions.h"}"\n'
    )
    compiler = ["c++", "-std=c++17", "-fsyntax-only", f"-I{headers}"]
    found = subprocess.run([*compiler, both], text=True, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr
    # All of them are torch's: none is declared by us alone.
    names = (ROOT / "csrc/abi/functions.h").read_text().split("F(")[2:]
    both.write_text(
        "#define TORCH_TARGET_VERSION 0x020b000000000000ULL\n"
        "#include <torch/csrc/stable/c/shim.h>\n"
        + "".join(f"auto f{i} = &{text.split(',')[1].strip()};\n" for i, text in enumerate(names))
    )
    found = subprocess.run([*compiler, both], text=True, capture_output=True, check=False)
    assert len(names) > 25 and found.returncode == 0, found.stderr
    # A signature of our own making is noticed.
    both.write_text(
        "#include <torch/csrc/stable/c/shim.h>\n"
        'extern "C" AOTITorchError aoti_torch_get_dim(AtenTensorHandle, int32_t*);\n'
    )
    assert subprocess.run([*compiler, both], capture_output=True, check=False).returncode != 0
