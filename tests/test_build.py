"""csrc/build.py: what compiles the native part, with and without ninja."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler"
)


@pytest.fixture
def build(monkeypatch):
    spec = importlib.util.spec_from_file_location("setok_build_under_test", ROOT / "csrc/build.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["ninja", "no ninja"])
def ninja(request, build, monkeypatch):
    if request.param == "no ninja":
        monkeypatch.setattr(build, "find_ninja", lambda: None)
    elif build.find_ninja() is None:
        pytest.skip("ninja is not there")


@needs_compiler
def test_an_object_is_compiled_once(build, ninja, tmp_path):
    source = tmp_path / "one thing.cpp"
    source.write_text("int one() { return VALUE; }\n")
    made = build.Build(tmp_path / "objects")
    job = build.Job(source, ("-DVALUE=1",), "one.o")
    (compiled,) = made._compile([job])
    assert compiled == (tmp_path / "objects" / "one.o").resolve() and compiled.is_file()
    # The library and the module have objects in common.
    compiled.unlink()
    assert made._compile([job]) == [compiled] and not compiled.exists()


@needs_compiler
def test_a_misfit_is_one_line(build, ninja, tmp_path):
    source = tmp_path / "wrong.cpp"
    source.write_text("int one() { return nothing; }\n")
    with pytest.raises(build.BuildError, match=r"wrong\.cpp:1.*error.*nothing") as raised:
        build.Build(tmp_path)._compile([build.Job(source, (), "wrong.o")])
    assert "\n" not in str(raised.value)


def test_a_compiler_that_says_nothing_is_named(build, ninja, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", shutil.which("false"))
    (tmp_path / "one.cpp").write_text("")
    job = build.Job(tmp_path / "one.cpp", (), "one.o")
    with pytest.raises(build.BuildError, match="false failed without a message"):
        build.Build(tmp_path)._compile([job])


def test_a_compiler_that_is_not_there_is_named(build, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "/nonexistent/c++ -m64")
    with pytest.raises(build.BuildError, match=r"^CXX: expected .* got /nonexistent/c\+\+$"):
        build.Build(tmp_path)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler was found"):
        build.Build(tmp_path)


@pytest.mark.parametrize(
    ("name", "library", "torch"),
    [
        ("linux-x86_64", "libsetok_kernels.so", "libtorch_cpu.so"),
        ("macosx-14.0-arm64", "libsetok_kernels.dylib", "libtorch_cpu.dylib"),
        ("win-amd64", "libsetok_kernels.dll", "torch_cpu.dll"),
    ],
)
def test_files_have_the_names_of_the_platform(build, name, library, torch):
    target = build.target_named(name)
    assert (target.library, target.torch) == (library, torch)
