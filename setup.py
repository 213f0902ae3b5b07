"""Map the source folders to their import names, and build the native part (csrc/build.py).

Everything else is in pyproject.toml. The build does not need torch. Without a compiler the package
is installed with the reference backend alone, as a wheel for any platform, with a warning.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

# File with the reason, installed in place of a library that could not be built, because pip hides
# build output. setok_kernels/_native.py reads it for the warning and for `setok doctor`.
FAILURE_NOTE = "_build_failed.txt"
# Folder of the CUDA kernels in the package, with their own note.
CUDA_FOLDER = "_cuda"
# SETOK_INTERNALS=0 leaves out the module, which is for one Python version only.
WITH_INTERNALS = os.environ.get("SETOK_INTERNALS", "1") != "0"

PACKAGES = [
    *find_packages(include=["setok_kernels", "setok_kernels.*"], exclude=["setok_kernels.cli"]),
    *find_packages("triton", include=["setok_triton", "setok_triton.*"]),
    "setokim",
    *(f"setokim.{name}" for name in find_packages("model")),
    # Embedded models and the script that makes them; a folder of data, without an __init__.py.
    "setokim.pretrained",
    "setok_bench",
    # A separate package, because importing setok_kernels imports torch, which would slow down
    # `setok --help`.
    "setok_cli",
]


def load_build():
    # Loaded by path: the folder is not a package, and not on sys.path in an isolated build.
    spec = importlib.util.spec_from_file_location("setok_build", "csrc/build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


native = load_build()


class CleanBuild(build):
    """Build from an empty folder, so that no files of earlier versions get into the wheel."""

    def run(self):
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildNative(build_ext):
    """Build of the operator library, the optional module, and the optional CUDA kernels.

    A failure leaves a note.
    """

    made: tuple = ()

    def run(self):
        folder = Path("." if self.inplace else self.build_lib, "setok_kernels")
        folder.mkdir(parents=True, exist_ok=True)
        self.build_native(folder)
        self.build_cuda(folder / CUDA_FOLDER)

    def build_cuda(self, folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            files = native.build_cuda(Path(self.build_temp, "cuda").resolve())
        except native.BuildError as error:
            (folder / FAILURE_NOTE).write_text(f"{error}\n")
            print(f"*** The CUDA kernels, optional, were not built: {error}", file=sys.stderr)
            return
        for file in files:
            shutil.copy2(file, folder)

    def build_native(self, folder):
        # Files of an earlier build do not match these sources.
        for name in (f"{native.LIBRARY}.*", f"{native.MODULE}.*", FAILURE_NOTE):
            for old in folder.glob(name):
                old.unlink()
        try:
            native_build = native.Build(Path(self.build_temp), native.target_named(self.plat_name))
            self.made = (native_build.library(),)
        except native.BuildError as error:
            (folder / FAILURE_NOTE).write_text(f"{error}\n")
            print(
                f"\n*** The compiled CPU kernels were NOT built: {error}\n"
                "*** setok_kernels is installed with its reference backend alone, many times\n"
                "*** slower. Put a C++17 compiler on PATH and install again.\n",
                file=sys.stderr,
            )
            return
        if WITH_INTERNALS:
            try:
                self.made += (native_build.module(),)
            except native.BuildError as error:
                print(f"*** {native.MODULE}, optional, was not built: {error}", file=sys.stderr)
        for file in self.made:
            shutil.copy2(file, folder)

    def get_outputs(self):
        return [str(Path(self.build_lib, "setok_kernels", file.name)) for file in self.made]

    def get_output_mapping(self):
        return {}


class TaggedWheel(bdist_wheel):
    """Wheel with a platform tag only if it contains a binary."""

    def run(self):
        self.run_command("build")
        self.skip_build = True
        if not self.get_finalized_command("build_ext").made:
            self.root_is_pure = True
            self.distribution.ext_modules = []
        super().run()

    def get_tag(self):
        python, abi, platform = super().get_tag()
        machine = native.target_named(self.get_finalized_command("build_ext").plat_name).machine
        platform = platform.replace("universal2", machine)
        if len(self.get_finalized_command("build_ext").made) == 1:
            # The operators alone work with every Python.
            return "py3", "none", platform
        return python, abi, platform


setup(
    packages=PACKAGES,
    package_dir={
        "setok_triton": "triton/setok_triton",
        "setokim": "model",
        "setok_bench": "bench",
        "setok_cli": "setok_kernels/cli",
    },
    package_data={
        "setok_kernels": ["py.typed"],
        "setok_bench": ["schema.json", "results/triton-counts.json"],
        "setokim": ["configs/*.yaml", "py.typed"],
        # Without an embedded model, a wheel is built all the same.
        "setokim.pretrained": ["model_card.md", "small_world/*"],
    },
    # Placeholder, so that build_ext runs; csrc/build.py has the sources.
    ext_modules=[Extension(f"setok_kernels.{native.MODULE}", sources=[], optional=True)],
    cmdclass={"build": CleanBuild, "build_ext": BuildNative, "bdist_wheel": TaggedWheel},
)
