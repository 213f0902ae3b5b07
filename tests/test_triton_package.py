"""The package triton, or a folder of that name. A real environment without it is in packaging/."""

import importlib.util
import sys
import types

import pytest

from setok_kernels import _triton_package, dispatch


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Nothing is called triton but a folder, as in the root of this repository."""
    (tmp_path / "triton" / "setok_triton").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path / "triton"


@pytest.mark.parametrize("imported", [False, True], ids=["not yet imported", "imported before"])
def test_a_folder_is_no_package(folder, imported):
    if imported:
        assert list(importlib.import_module("triton").__path__) == [str(folder)]
    assert not _triton_package.is_installed()
    _triton_package.hide_folder()
    with pytest.raises(ImportError, match="triton"):
        import triton  # noqa: F401
    assert importlib.util.find_spec("triton") is None
    assert "the package triton is not installed" in dispatch._why_no_triton()


def test_without_the_folder_nothing_is_hidden(folder):
    """Who installs triton later need not start again."""
    (folder / "setok_triton").rmdir()
    folder.rmdir()
    assert not _triton_package.is_installed()
    _triton_package.hide_folder()
    assert "triton" not in sys.modules


def test_the_package_stays(folder):
    (folder / "__init__.py").touch()
    assert _triton_package.is_installed()
    _triton_package.hide_folder()
    assert importlib.import_module("triton").__file__ == str(folder / "__init__.py")


def test_what_somebody_put_there_stays(monkeypatch):
    """A stand-in without a spec, as in tests of others."""
    stand_in = types.ModuleType("triton")
    monkeypatch.setitem(sys.modules, "triton", stand_in)
    assert _triton_package.is_installed()
    _triton_package.hide_folder()
    assert sys.modules["triton"] is stand_in
