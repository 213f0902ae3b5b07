"""The package as users get it: built, installed and imported in fresh environments."""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import setok_kernels

ROOT = Path(__file__).parents[2]
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "demo_out", "bench_out", "mutants",
    "__pycache__", ".*_cache", ".hypothesis", "*.so", "_build_failed.txt",
)  # fmt: skip

EMBEDDED_FILES = (
    *("README.md", "chat_template.jinja", "config.json", "figures.json", "generation_config.json"),
    *("held_out.yaml", "model.safetensors", "preprocessor_config.json", "scene.png"),
    *("tokenizer.json", "tokenizer_config.json"),
)

slow = [pytest.mark.packaging, pytest.mark.slow]
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="no C++ compiler"
)

# Runs in the environment under test: what the names resolve to, as JSON.
PROBE = """
import importlib, importlib.resources, importlib.util, json
def probe():
    found = {"triton origin": importlib.util.find_spec("triton").origin}
    for name in ("triton", "setok_kernels", "setok_triton", "setokim", "setok_bench", "setok_cli"):
        found[name] = importlib.import_module(name).__file__
    import setok_kernels, triton
    from setok_kernels import _native
    found["version"] = setok_kernels.__version__
    data = (
        ("setok_bench", "schema.json"),
        ("setok_bench", "results/triton-counts.json"),
        ("setokim", "configs/stage1_tiny.yaml"),
        ("setok_kernels", "py.typed"),
        ("setokim", "py.typed"),
        ("setokim", "pretrained/model_card.md"),
        ("setokim", "pretrained/release.py"),
    )
    found["data"] = [importlib.resources.files(p).joinpath(f).is_file() for p, f in data]
    found["release"] = importlib.import_module("setokim.pretrained.release").__file__
    from setokim.utils.pretrained import resolve_model
    try:
        found["embedded"] = str(resolve_model())
    except ValueError as error:
        found["embedded"] = str(error)
    found["why_missing"] = _native.why_missing()
    from setok_kernels import _cuda_kernels
    found["no cuda"] = _cuda_kernels.why_missing()
    found["real triton"] = hasattr(triton, "jit")
    if found["why_missing"] is None:
        found["library"] = str(_native.load())
        internals = _native.internals()
        found["built"] = None if internals is None else internals.build_info()
    return found
"""


def run(*command, cwd, **environment):
    # A test run's own settings, coverage among them, must not reach the environments under test.
    foreign = ("PYTEST", "COV", "PYTHON", "TRITON", "CC", "CXX")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    child = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=inherited | {"PYTHONDONTWRITEBYTECODE": "1"} | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert child.returncode == 0, child.stdout
    return child.stdout


def copy_source(folder):
    return Path(shutil.copytree(ROOT, folder, ignore=NOT_SOURCE))


BUILD_TOOLS = ("setuptools", "_distutils_hack", "wheel", "build", "pyproject_hooks", "packaging")


def bare_environment(folder, *packages):
    """An environment that sees these packages, of those installed here, and nothing else."""
    venv.create(folder)
    inside = {"base": str(folder), "platbase": str(folder)}
    site_packages = Path(sysconfig.get_path("purelib", "venv", inside))
    for package in packages:
        installed = Path(importlib.util.find_spec(package).origin).parent
        for path in (installed, *installed.parent.glob(f"{package}-*.dist-info")):
            (site_packages / path.name).symlink_to(path)
    return Path(sysconfig.get_path("scripts", "venv", inside), "python")


def fresh_environment(folder, without=None):
    """An environment with nothing of ours that sees the dependencies installed here.

    Args:
        without: a package that it does not see.
    """
    venv.create(folder)
    inside = {"base": str(folder), "platbase": str(folder)}
    site_packages = Path(sysconfig.get_path("purelib", "venv", inside))
    # Plain paths: .pth files in those folders are not followed, so an editable install of ours
    # there has no say.
    dependencies = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    if without is not None:
        dependencies = [links_to_packages(folder / "dependencies", dependencies, without)]
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    python = Path(sysconfig.get_path("scripts", "venv", inside), "python")
    # What pip writes for the entry point: unlike `python -m pytest` it keeps the folder it is
    # started in off sys.path.
    script = python.with_name("pytest")
    script.write_text(
        f"#!{python}\nimport sys\nfrom pytest import console_main\nsys.exit(console_main())\n"
    )
    script.chmod(0o755)
    return python


def links_to_packages(folder, places, without):
    """A folder with what lies in these places, but for one package."""
    folder.mkdir()
    for place in places:
        for entry in Path(place).iterdir():
            ours = entry.name.startswith("__editable__") or entry.name == "__pycache__"
            absent = entry.name == without or entry.name.startswith(f"{without}-")
            if not (ours or absent or (folder / entry.name).exists()):
                (folder / entry.name).symlink_to(entry)
    return str(folder)


def pip_install(python, *what, cwd, **environment):
    # --ignore-installed: pip sees, and must not touch, an install next to the dependencies.
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed")
    return run(python, "-m", "pip", "install", "-v", *offline, *what, cwd=cwd, **environment)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return copy_source(tmp_path_factory.mktemp("clone") / "setok_kernels_clone")


@pytest.fixture(scope="module")
def repaired(source, tmp_path_factory, quick_compiler):
    """An editable install without a compiler and, after it, with one; why it was missing before."""
    python = fresh_environment(tmp_path_factory.mktemp("editable"))
    pip_install(python, "-e", source, cwd=source, CC="/bin/false", CXX="/bin/false")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    why_missing = probe(python, "python", elsewhere, elsewhere)["why_missing"]
    pip_install(python, "-e", source, cwd=source, **quick_compiler)
    return python, why_missing


@pytest.fixture(scope="module")
def editable(repaired):
    return repaired[0]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, quick_compiler):
    # From a clone of its own: the library of the editable install lies in the other one. By way of
    # the source archive, so that a file missing there is noticed. Without torch, pybind11 and
    # ninja, as in the barest isolated build.
    folder = tmp_path_factory.mktemp("wheel")
    clone = copy_source(folder / "setok_kernels_clone")
    for name in EMBEDDED_FILES:
        # The same names as those of a real embedded model.
        file = clone / "model" / "pretrained" / "small_world" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
    builder = bare_environment(folder / "builder", *BUILD_TOOLS)
    build = ("--no-isolation", "--skip-dependency-check", "--outdir", folder, clone)
    run(builder, "-m", "build", *build, cwd=folder, **quick_compiler)
    python = fresh_environment(folder / "environment")
    pip_install(python, next(folder.glob("*.whl")), cwd=folder)
    return python, clone


def probe(python, runner, cwd, scratch):
    """What our names resolve to, under plain python or pytest started in `cwd`."""
    if runner == "python":
        return json.loads(run(python, "-c", PROBE + "print(json.dumps(probe()))", cwd=cwd))
    result = scratch / "found.json"
    test = scratch / "test_probe.py"
    test.write_text(
        f"{PROBE}\ndef test_probe():\n    open({str(result)!r}, 'w').write(json.dumps(probe()))\n"
    )
    pytest_command = (
        [python.with_name("pytest")] if runner == "pytest" else [python, "-m", "pytest"]
    )
    run(*pytest_command, "-q", "-p", "no:cacheprovider", test, cwd=cwd)
    return json.loads(result.read_text())


def assert_all_resolve(found, ours):
    real = importlib.util.find_spec("triton").origin
    assert found["triton"] == found["triton origin"] == real and found["real triton"]
    assert found["data"] == [True] * 7
    packages = ("setok_kernels", "setok_triton", "setokim", "setok_bench", "setok_cli")
    for name in (*packages, "release"):
        assert Path(found[name]).is_relative_to(ours), f"{name} came from {found[name]}"
    assert found["version"] == setok_kernels.__version__
    assert found["why_missing"] is None
    assert Path(found["library"]).is_relative_to(ours)


@needs_compiler
class TestImports:
    pytestmark = slow

    @pytest.mark.parametrize(
        ("place", "runner"), [("root", "python"), ("root", "pytest"), ("elsewhere", "pytest")]
    )
    def test_editable(self, editable, source, place, runner, tmp_path):
        scratch = source / "tests" / "packaging" if place == "root" else tmp_path
        found = probe(editable, runner, source if place == "root" else tmp_path, scratch)
        assert_all_resolve(found, source)
        assert found["built"]["cxx_standard"] >= 201703 and found["built"]["compiler"] != "unknown"

    @pytest.mark.parametrize(
        ("place", "runner"),
        [
            ("root", "python -m pytest"),  # unlike bare pytest it puts the root first on sys.path
            ("root", "pytest"),
            ("elsewhere", "python"),
        ],
    )
    def test_wheel(self, wheel, place, runner, tmp_path):
        python, clone = wheel
        if place == "root":
            scratch, cwd = clone / "tests" / "packaging", clone
        else:
            scratch = cwd = tmp_path
        found = probe(python, runner, cwd, scratch)
        if place == "root" and runner != "pytest":
            # Python itself puts the folder it is started in first: setok_kernels is the clone's,
            # which has no library, and the reason has to say which folder that is.
            assert found["setok_kernels"] == str(clone / "setok_kernels" / "__init__.py")
            assert str(clone / "setok_kernels") in found["why_missing"]
            assert found["triton"] == importlib.util.find_spec("triton").origin
            assert Path(found["setok_triton"]).is_relative_to(python.parents[1])
            assert Path(found["setokim"]).is_relative_to(python.parents[1])
            assert Path(found["setok_bench"]).is_relative_to(python.parents[1])
            assert Path(found["setok_cli"]).is_relative_to(python.parents[1])
        else:
            assert_all_resolve(found, python.parents[1])
            assert found["built"] is None


@needs_compiler
class TestArchives:
    pytestmark = slow

    def test_a_wheel_is_named_after_what_is_in_it(self, wheel):
        """The operators alone serve every Python, on this platform."""
        _, clone = wheel
        (archive,) = clone.parent.glob("*.whl")
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        assert archive.name.endswith(f"-py3-none-{platform}.whl")
        with zipfile.ZipFile(archive) as opened:
            native = [name for name in opened.namelist() if "setok_kernels/_build" in name]
            assert not native and "setok_kernels/libsetok_kernels.so" in opened.namelist()

    def test_no_test_gets_in(self, wheel):
        """Nor does the PTX emulator, which lies among the tests."""
        _, clone = wheel
        with zipfile.ZipFile(next(clone.parent.glob("*.whl"))) as archive:
            installed = archive.namelist()
        with tarfile.open(next(clone.parent.glob("*.tar.gz"))) as archive:
            shipped = archive.getnames()
        assert "setok_triton/select.py" in installed and "setok_cli/main.py" in installed
        assert not [name for name in installed if "tests" in name.split("/")]
        assert not [name for name in installed + shipped if "ptxemu" in name.split("/")]

    def test_the_embedded_model_gets_in(self, wheel):
        _, clone = wheel
        with zipfile.ZipFile(next(clone.parent.glob("*.whl"))) as archive:
            installed = archive.namelist()
        with tarfile.open(next(clone.parent.glob("*.tar.gz"))) as archive:
            shipped = [name.partition("/")[2] for name in archive.getnames()]
        for name in EMBEDDED_FILES:
            assert f"setokim/pretrained/small_world/{name}" in installed
            assert f"model/pretrained/small_world/{name}" in shipped

    @pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
    def test_the_cuda_kernels_get_in(self, wheel, tmp_path):
        """Also by way of the source archive."""
        python, clone = wheel
        with zipfile.ZipFile(next(clone.parent.glob("*.whl"))) as archive:
            names = {name for name in archive.namelist() if "/_cuda/" in name}
        kinds = [f"scope_sm_{arch}.{kind}" for arch in (80, 90) for kind in ("cubin", "ptx")]
        assert names == {f"setok_kernels/_cuda/{kind}" for kind in kinds}
        assert probe(python, "python", tmp_path, tmp_path)["no cuda"] is None

    def test_the_commands_are_installed_once(self, wheel):
        """Each with the package that it needs."""
        _, clone = wheel
        with zipfile.ZipFile(next(clone.parent.glob("*.whl"))) as archive:
            names = archive.namelist()
        assert [name for name in names if name.endswith("/_inference.py")] == [
            "setokim/cli/_inference.py"
        ]


class TestWithoutCompiler:
    pytestmark = slow

    @pytest.mark.parametrize(
        ("editable_flag", "compiler"),
        [(["-e"], "/nonexistent/c++"), ([], "/bin/false")],
        ids=["editable, none", "wheel, failing"],
    )
    def test_installs_and_says_why(self, editable_flag, compiler, tmp_path):
        clone = copy_source(tmp_path / "clone")
        # Nor has everyone the weights of the embedded model.
        shutil.rmtree(clone / "model" / "pretrained" / "small_world", ignore_errors=True)
        stale = clone / "setok_kernels" / "libsetok_kernels.so"
        if editable_flag:
            stale.write_bytes(b"a library built from older sources")
        # A wheel is put together in a folder that an earlier build has left.
        build = f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        left = clone / "build" / build / "setok_kernels" / "left_over.py"
        left.parent.mkdir(parents=True)
        left.write_text("")
        python = fresh_environment(tmp_path / "environment")
        folders = os.environ["PATH"].split(os.pathsep)
        without_nvcc = os.pathsep.join(f for f in folders if not Path(f, "nvcc").exists())
        said = pip_install(
            *(python, *editable_flag, clone),
            **dict(cwd=tmp_path, CC=compiler, CXX=compiler, PATH=without_nvcc),
        )
        assert "The CUDA kernels, optional, were not built: nvcc was not found" in said
        assert "The compiled CPU kernels were NOT built" in said
        assert editable_flag or "-py3-none-any.whl" in said

        found = probe(python, "python", tmp_path, tmp_path)
        assert "could not be built when the package was installed" in found["why_missing"]
        assert compiler in found["why_missing"]
        note = "the CUDA kernels could not be built when the package was installed (nvcc was not"
        assert found["no cuda"].startswith(note) and "put nvcc on PATH" in found["no cuda"]
        assert "this installation lacks the embedded model small-world" in found["embedded"]
        remedy = f"pip install --force-reinstall --no-deps --no-cache-dir {' '.join(editable_flag)}"
        assert f"{remedy.strip()} {clone}`" in found["why_missing"]
        assert not stale.exists()
        assert not Path(found["setok_kernels"]).with_name("left_over.py").exists()

    @needs_compiler
    def test_a_later_install_with_a_compiler_repairs_it(self, repaired, tmp_path):
        python, why_missing = repaired
        assert "/bin/false" in why_missing
        assert probe(python, "python", tmp_path, tmp_path)["why_missing"] is None


# Runs in the root of the repository, whose folder triton/ is then a package without files.
WITHOUT_TRITON = """
import importlib.metadata, json, sys
{first}
import setok_kernels as sk
import torch
from torch.utils._triton import has_triton_package

def clusters(x):
    out = sk.cluster_tokens(x, sk.ClusterConfig(k=2, max_clusters=4), backend="cpp")
    return out.masks.relu() + 1, out.labels

x, _ = sk.testing.planted_clusters(1, 20, 3, 3)
same = [torch.equal(a, b) for a, b in zip(torch.compile(clusters)(x), clusters(x))]
plain = torch.compile(lambda x: x.sin().square())(x)
same.append(torch.allclose(plain, x.sin().square()))
try:
    importlib.metadata.version("triton")
    raise AssertionError("triton is installed")
except importlib.metadata.PackageNotFoundError:
    pass
print(json.dumps([same, has_triton_package(), sk.backends()["triton"]]))
"""


class TestWithoutTriton:
    pytestmark = slow

    @needs_compiler
    @pytest.mark.parametrize("first", ["", "import torch", "import triton"])
    def test_the_folder_does_not_stand_for_it(self, editable, source, tmp_path, first):
        """`editable` has built the compiled module into the source folder."""
        python = fresh_environment(tmp_path / "environment", without="triton")
        # Compiled code is kept elsewhere: it must come from this process.
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        said = run(python, "-c", WITHOUT_TRITON.format(first=first), cwd=source, **cache)
        same, has_triton, reason = json.loads(said.splitlines()[-1])
        assert same == [True] * 3 and not has_triton
        assert "the package triton is not installed" in reason


def test_the_triton_folder_is_no_package():
    assert not (ROOT / "triton" / "__init__.py").exists()


def test_the_version_has_one_source():
    assert importlib.metadata.version("setok-kernels") == setok_kernels.__version__
    assert re.search(r'^dynamic = \["version"\]$', (ROOT / "pyproject.toml").read_text(), re.M)
    assigned = re.compile(r"""^\s*(__)?version(__)?\s*=\s*["']\d""", re.M)
    folders = ("setok_kernels", "model", "triton", "csrc", "bench")
    files = [ROOT / "pyproject.toml", ROOT / "setup.py"]
    files += [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = [path.relative_to(ROOT) for path in files if assigned.search(path.read_text())]
    assert found == [Path("setok_kernels/__init__.py")]


def test_the_commands_have_one_name():
    """In a checkout they can be imported by the path of their folder too, a second time over."""
    wrong = re.compile(r"setok_kernels[.]cli\b|from setok_kernels import .*\bcli\b")
    folders = ("setok_kernels", "model", "triton", "bench", "docs", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = [path.relative_to(ROOT) for path in files if wrong.search(path.read_text())]
    assert found == []
