"""The repository for the Kernel Hub, loaded by its own library beside the installed package."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import setok_kernels as sk

kernels = pytest.importorskip("kernels")

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.packaging,
    pytest.mark.slow,
    pytest.mark.skipif(
        not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler"
    ),
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory, quick_compiler):
    out = tmp_path_factory.mktemp("hub") / "setok-kernels"
    script = [sys.executable, ROOT / "csrc/kernel_hub.py", "--out", out]
    made = subprocess.run(
        script, text=True, capture_output=True, check=False, env=os.environ | quick_compiler
    )
    assert made.returncode == 0, made.stderr
    return out


@pytest.fixture(scope="module")
def kernel(repository):
    # Its own name of a module and of the operators: both live in this process.
    return kernels.get_local_kernel(repository, backend="cpu")


def test_it_clusters_as_the_installed_package(kernel):
    x = torch.randn(2, 60, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ours, theirs = sk.cluster_tokens(x, backend="cpp"), kernel.cluster_tokens(x, backend="cpp")
    assert kernel.backends()["cpp"] is None
    assert type(theirs) is not type(ours) and torch.equal(theirs.labels, ours.labels)
    torch.testing.assert_close(theirs.masks, ours.masks, rtol=1e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(kernel.merge_tokens(x, theirs).square().sum(), x)
    assert grad.abs().sum() > 0


def test_it_needs_no_installed_package(repository):
    """Or one would import the other's modules, where there is any."""
    program = """
        import sys
        sys.modules["setok_kernels"] = None
        from pathlib import Path
        import kernels, torch
        kernel = kernels.get_local_kernel(Path(sys.argv[1]), backend="cpu")
        print(kernel.cluster_tokens(torch.zeros(1, 4, 1), backend="cpp").labels.shape)
        print(kernel.testing.__name__, hasattr(torch.ops.setok, "cluster"))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), repository]
    told = subprocess.run(command, text=True, capture_output=True, check=False)
    (variant,) = (repository / "build").iterdir()
    name = json.loads((variant / "metadata.json").read_text())["id"]
    assert told.stdout.splitlines() == [
        "torch.Size([1, 4])",
        f"{name}.setok_kernels.testing False",
    ], told.stderr
    assert name.startswith("_setok_kernels_cpu_")


def test_the_metadata_speak_of_every_file(repository):
    (variant,) = (repository / "build").iterdir()
    metadata = json.loads((variant / "metadata.json").read_text())
    for name, digest in metadata["digest"]["files"].items():
        whole = hashlib.sha256((variant / name).read_bytes()).digest()
        assert base64.b64encode(whole).decode() == digest
    there = {path.relative_to(variant).as_posix() for path in variant.rglob("*") if path.is_file()}
    compiled = {name for name in there if "__pycache__" in name}
    assert there - compiled == {*metadata["digest"]["files"], "metadata.json"}


def test_kernel_builder_gets_every_source(repository):
    tomllib = pytest.importorskip("tomllib")
    config = tomllib.loads((repository / "build.toml").read_text())
    assert config["torch"]["stable-abi"] == {"cpu": "2.11"}
    listed = {*config["torch"]["src"]}
    for section in config["kernel"].values():
        listed.update(section["src"])
    there = (repository / "csrc").rglob("*")
    native = {p.relative_to(repository).as_posix() for p in there if p.suffix in (".cpp", ".h")}
    aside = {"csrc/abi/stub.cpp", "csrc/python/internals.cpp"}
    assert native - aside == listed
