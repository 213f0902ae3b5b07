"""Maps the source folders onto their import names and builds the optional native module.

Everything else is declared in pyproject.toml. torch is no build requirement, because an isolated
build would download it: the native module is compiled against the torch that is installed, found
without importing it, and left out where there is none.
"""

import functools
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError

NATIVE_MODULE = "setok_kernels._C"
# Shipped in place of the module when it could not be built, since pip hides what a build prints.
# setok_kernels/_native.py reads it, so that `setok doctor` can still say why.
FAILURE_NOTE = Path("setok_kernels", "_C_build_failed.txt")

# The oldest torch whose stable ABI the module uses; it runs on that one and on every later one.
TORCH_ABI = ("TORCH_TARGET_VERSION", "0x020b000000000000ULL")
# Threads are torch's own: OpenMP serves only to say which loops are vectors. Nobody reads errno or
# the floating-point flags, which would keep square roots and selections from being vectorised.
VECTOR_FLAGS = ["-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]

# The kernels, compiled once for each instruction set; csrc/isa.cpp chooses among the same ones.
KERNELS = Path("csrc", "simd", "table.cpp")
# Feature by feature: GCC, clang and zig do not agree on how to spell x86-64-v3 and x86-64-v4.
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c", "-mmovbe", "-mpopcnt", "-mlzcnt", "-mbmi", "-mbmi2"]
INSTRUCTION_SETS = {
    "avx512": [
        *AVX2_FLAGS,
        *(f"-mavx512{feature}" for feature in ("f", "bw", "cd", "dq", "vl")),
        # clang takes half of a register otherwise.
        "-mprefer-vector-width=512",
    ],
    "avx2": AVX2_FLAGS,
    "baseline": [],
}

PACKAGES = [
    *find_packages(include=["setok_kernels", "setok_kernels.*"]),
    *find_packages("triton", include=["setok_triton", "setok_triton.*"]),
    "setokim",
    *(f"setokim.{name}" for name in find_packages("model")),
    "setok_bench",
]


def find_ninja() -> str | None:
    # A virtual environment's ninja is not on PATH while the environment is not activated.
    scripts = sysconfig.get_path("scripts")
    return shutil.which("ninja", path=os.pathsep.join([scripts, os.environ.get("PATH", "")]))


def find_torch() -> Path:
    """The installed torch's folder, found without importing it."""
    roots = [Path(sysconfig.get_paths()["purelib"]), *map(Path, sys.path)]
    for root in roots:
        if (root / "torch/include/torch/csrc/stable/ops.h").exists():
            return root / "torch"
    raise CompileError(
        "the headers of torch were not found; install torch first and build with "
        "--no-build-isolation"
    )


def compile_units(sources, output_dir, platform=None):
    """What to compile: source, flags of its own, and folder of the object, for every object.

    Args:
        sources: paths; KERNELS among them is compiled for every instruction set.
        output_dir: folder of the objects.
        platform: to compile for, as `sysconfig.get_platform` names it; None for the one here.
    """
    platform = platform or sysconfig.get_platform()
    x86 = platform.endswith(("x86_64", "amd64")) and not platform.startswith("macosx")
    for source in sources:
        if Path(source) != KERNELS:
            yield source, [], str(output_dir)
            continue
        for isa, flags in INSTRUCTION_SETS.items():
            if x86 or isa == "baseline":
                # clang's handler of exceptions would be a weak symbol; the kernels throw none.
                own = [f"-DSETOK_ISA={isa}", "-fno-exceptions", *flags]
                yield source, own, str(Path(output_dir, isa))


def compile_in_turn(compile_some, sources, output_dir, extra_postargs=(), **options):
    """Stands in for `compiler.compile`, where sources may have flags of their own."""
    objects = []
    for source, flags, folder in compile_units(sources, output_dir):
        own = [*(extra_postargs or ()), *flags]
        objects += compile_some([source], output_dir=folder, extra_postargs=own, **options)
    return objects


def compile_with_ninja(
    ninja, compiler, sources, output_dir, macros=(), include_dirs=(), extra_postargs=(), **_
):
    """The same in parallel, and it follows headers."""
    includes = [f"-I{path}" for path in (*include_dirs, *compiler.include_dirs)]
    defines = [f"-D{name}={value}" for name, value in macros or ()]
    command = shlex.join([*compiler.compiler_so_cxx, *defines, *includes, *extra_postargs])

    def escape(path):
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    objects, edges = [], []
    for source, flags, folder in compile_units(sources, output_dir):
        objects += compiler.object_filenames([source], output_dir=folder)
        edges.append(
            f"build {escape(Path(objects[-1]).resolve())}: cxx {escape(Path(source).resolve())}\n"
            f"  flags = {' '.join(flags)}"
        )
    command = f"{command.replace('$', '$$')} $flags -MMD -MF $out.d -c $in -o $out"
    rule = f"rule cxx\n  command = {command}\n"
    build_file = Path(output_dir, "build.ninja")
    build_file.parent.mkdir(parents=True, exist_ok=True)
    build_file.write_text(f"{rule}  depfile = $out.d\n  deps = gcc\n" + "\n".join(edges) + "\n")

    build = subprocess.run(
        [ninja, "-C", str(build_file.parent)], text=True, capture_output=True, check=False
    )
    print(build.stdout, build.stderr, file=sys.stderr)
    if build.returncode:
        lines = build.stdout.splitlines()
        said = [line for line in lines if "error" in line or "not found" in line]
        raise CompileError(said[0] if said else f"{compiler.compiler_so_cxx[0]} failed, silently")
    return objects


class OptionalBuildExt(build_ext):
    """Builds the native module, or says loudly and durably why it could not."""

    def build_extension(self, ext):
        note = Path(self.build_lib, FAILURE_NOTE)
        note.unlink(missing_ok=True)
        try:
            self._build(ext)
        except (BaseError, CCompilerError, ImportError, OSError) as error:
            reason = " ".join(str(error).split())
            # A module left by an earlier build does not match these sources any more.
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(reason + "\n")
            print(
                f"\n*** {ext.name} was NOT built: {reason}\n"
                "*** The package is installed without its compiled CPU kernels; the reference\n"
                "*** backend works. To get them, put a C++17 compiler on PATH and install again.\n",
                file=sys.stderr,
            )

    def _build(self, ext):
        # Imported late: a missing pybind11 is one more reason to go on without the module.
        import pybind11

        ext.include_dirs.append(pybind11.get_include())
        torch_root = find_torch()
        ext.include_dirs.append(str(torch_root / "include"))
        ext.library_dirs.append(str(torch_root / "lib"))
        ext.libraries.append("torch_cpu")
        ext.define_macros += [TORCH_ABI]
        if self.compiler.compiler_type == "msvc":
            ext.extra_compile_args = ["/std:c++17", "/O2", "/EHsc"]
        else:
            ext.extra_compile_args = ["-std=c++17", "-O3", "-fvisibility=hidden", *VECTOR_FLAGS]
        if self.compiler.compiler_type != "msvc" and (ninja := find_ninja()):
            compile_all = functools.partial(compile_with_ninja, ninja, self.compiler)
        else:
            compile_all = functools.partial(compile_in_turn, self.compiler.compile)
        self.compiler.compile = compile_all
        super().build_extension(ext)

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        built_note, source_note = Path(self.build_lib, FAILURE_NOTE), FAILURE_NOTE
        source_note.unlink(missing_ok=True)
        if built_note.exists():
            # Nor does one that was put here before.
            Path(self.get_ext_fullpath(NATIVE_MODULE)).unlink(missing_ok=True)
            shutil.copyfile(built_note, source_note)


setup(
    packages=PACKAGES,
    package_dir={"setok_triton": "triton/setok_triton", "setokim": "model", "setok_bench": "bench"},
    package_data={
        "setok_bench": ["schema.json", "results/triton-counts.json"],
        "setokim": ["configs/*.yaml"],
    },
    ext_modules=[
        Extension(
            NATIVE_MODULE,
            sources=[*sorted(str(path) for path in Path("csrc").glob("*.cpp")), str(KERNELS)],
            depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": OptionalBuildExt},
)
