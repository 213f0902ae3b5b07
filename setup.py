"""Maps the source folders onto their import names and builds the native part, csrc/build.py.

Everything else is declared in pyproject.toml. Nothing here needs torch. Without a compiler the
package is installed with the reference backend alone, as a wheel for any platform, and says so.
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

# Shipped in place of the library when it could not be built, since pip hides what a build prints.
# setok_kernels/_native.py reads it, so that a warning and `setok doctor` can still say why.
FAILURE_NOTE = "_build_failed.txt"
# A wheel for every Python has no module for one of them: SETOK_INTERNALS=0 leaves it out.
WITH_INTERNALS = os.environ.get("SETOK_INTERNALS", "1") != "0"

PACKAGES = [
    *find_packages(include=["setok_kernels", "setok_kernels.*"], exclude=["setok_kernels.cli"]),
    *find_packages("triton", include=["setok_triton", "setok_triton.*"]),
    "setokim",
    *(f"setokim.{name}" for name in find_packages("model")),
    "setok_bench",
    # A package of its own, because importing setok_kernels imports torch, and `setok --help` must
    # not wait for that.
    "setok_cli",
]


def load_build():
    # By its path: the folder is no package, and not on sys.path in an isolated build.
    spec = importlib.util.spec_from_file_location("setok_build", "csrc/build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


native = load_build()


class CleanBuild(build):
    """Begins with nothing, or files of earlier versions would get into the wheel."""

    def run(self):
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildNative(build_ext):
    """Builds the operator library and the optional module, or says durably why it could not."""

    made: tuple = ()

    def run(self):
        folder = Path("." if self.inplace else self.build_lib, "setok_kernels")
        folder.mkdir(parents=True, exist_ok=True)
        # What an earlier build left does not match these sources any more.
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
    """Names a wheel after what is in it: never a platform without its binary."""

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
            # The operators alone serve every Python.
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
    },
    # Says that there is something to build; csrc/build.py knows what.
    ext_modules=[Extension(f"setok_kernels.{native.MODULE}", sources=[], optional=True)],
    cmdclass={"build": CleanBuild, "build_ext": BuildNative, "bdist_wheel": TaggedWheel},
)
