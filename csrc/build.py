"""Build the operator library, and the optional module for tests, without torch.

setup.py calls it. `python csrc/build.py` works without an installation, also for another platform.
It needs a C++17 compiler, and uses ninja if installed. CXX, CXXFLAGS, CPPFLAGS and LDFLAGS in the
environment have their usual meaning. nvcc, or NVCC in the environment, also makes the CUDA kernels.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
LIBRARY = "libsetok_kernels"
MODULE = "_internals"

# Threads are torch's: OpenMP only marks loops to vectorise. The last two flags allow vectorised
# square roots and selections; the code reads neither errno nor the floating-point flags.
FLAGS = [
    *("-std=c++17", "-O3", "-fPIC", "-DNDEBUG", "-fvisibility=hidden"),
    *("-fvisibility-inlines-hidden", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"),
]
# Source of the kernels, compiled once for each instruction set; isa.cpp has the same sets.
KERNELS = SOURCES / "simd" / "table.cpp"
# Single features, because GCC, clang and zig spell x86-64-v3 and x86-64-v4 differently.
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c", "-mmovbe", "-mpopcnt", "-mlzcnt", "-mbmi", "-mbmi2"]
AVX512_FLAGS = [
    *AVX2_FLAGS,
    *(f"-mavx512{feature}" for feature in ("f", "bw", "cd", "dq", "vl")),
    # Otherwise clang uses 256-bit vectors.
    "-mprefer-vector-width=512",
]
# A replay repeats the roundings of the loop, so no product is contracted unless written so.
CUDA_FLAGS = ["-std=c++17", "-fmad=false"]
# Compute capabilities with machine code; newer devices compile the PTX of the last.
CUDA_ARCHS = (80, 90)
INSTRUCTION_SETS = {
    "avx512bf16": [*AVX512_FLAGS, "-mavx512bf16"],
    "avx512": AVX512_FLAGS,
    "avx2": AVX2_FLAGS,
    "baseline": [],
}


class BuildError(Exception):
    """Error: the native part could not be built; the message has the reason in one line."""


@dataclass(frozen=True)
class Target:
    """A platform to build for.

    Attributes:
        system: operating system, "Linux", "Darwin" or "Windows".
        machine: architecture, as in `platform.machine`.
    """

    system: str
    machine: str

    @property
    def library(self) -> str:
        """File name of the operator library."""
        return LIBRARY + {"Darwin": ".dylib", "Windows": ".dll"}.get(self.system, ".so")

    @property
    def torch(self) -> str:
        """File name of torch's library that it links with."""
        return {"Darwin": "libtorch_cpu.dylib", "Windows": "torch_cpu.dll"}.get(
            self.system, "libtorch_cpu.so"
        )

    @property
    def instruction_sets(self) -> tuple[str, ...]:
        """Instruction sets with kernels, best first."""
        x86 = self.machine.lower() in ("x86_64", "amd64") and self.system != "Darwin"
        return tuple(INSTRUCTION_SETS) if x86 else ("baseline",)

    def link(self, name: str) -> list[str]:
        """Return the linker flags of a shared library called `name`."""
        if self.system == "Darwin":
            return ["-dynamiclib", f"-Wl,-install_name,@rpath/{name}"]
        if self.system == "Windows":
            return ["-shared"]
        return ["-shared", f"-Wl,-soname,{name}"]


def target_named(name: str) -> Target:
    """Return the target of a sysconfig name: linux-aarch64, macosx-14.0-arm64, win-amd64.

    A universal macOS build has binaries for several machines; ours is for this machine only.
    """
    system, _, machine = name.partition("-")
    machine = machine.rpartition("-")[2]
    if machine in ("universal2", ""):
        machine = platform.machine()
    return Target({"macosx": "Darwin", "win": "Windows"}.get(system, system.capitalize()), machine)


@dataclass(frozen=True)
class Job:
    """Source file with its own flags and the name of its object file."""

    source: Path
    flags: tuple[str, ...]
    name: str


class Build:
    """Build of objects and libraries in one folder.

    Args:
        folder: folder of objects and libraries, created if missing.
        target: platform of the binaries; None means this machine.
        defines: further flags of the compiler.
    """

    def __init__(self, folder: Path, target: Target | None = None, defines: tuple[str, ...] = ()):
        self.folder = folder.resolve()
        self.target = target_named(sysconfig.get_platform()) if target is None else target
        self.compiler = find_compiler()
        self.flags = [*FLAGS, *defines]
        self._objects: set[Path] = set()
        self.extra = [
            flag for name in ("CPPFLAGS", "CXXFLAGS") for flag in shlex.split(os.getenv(name, ""))
        ]
        self.link_extra = shlex.split(os.getenv("LDFLAGS", ""))
        if not any(flag.startswith("-g") for flag in self.extra):
            # Strip debug information, ten times the size, unless requested.
            self.link_extra.insert(0, "-Wl,-S" if self.target.system == "Darwin" else "-Wl,-s")

    def kernels(self) -> list[Job]:
        """Return the jobs of all sources except the registration of the operators."""
        once = [path for path in sorted(SOURCES.glob("*.cpp")) if path.name != "operators.cpp"]
        # clang's exception handler would be a weak symbol; the kernels throw no exceptions.
        versions = {
            name: (f"-DSETOK_ISA={name}", "-fno-exceptions", *INSTRUCTION_SETS[name])
            for name in self.target.instruction_sets
        }
        return [
            *map(self._job, once),
            *(self._job(KERNELS, *flags, name=name) for name, flags in versions.items()),
        ]

    def library(self) -> Path:
        """Build the operator library and return its path."""
        objects = self._compile([*self.kernels(), self._job(SOURCES / "operators.cpp")])
        return self._link(objects, self.target.library, self._torch())

    def module(self) -> Path:
        """Build the optional module for this Python, after the library.

        Raises:
            BuildError: pybind11 is not installed, or the build fails.
        """
        try:
            import pybind11
        except ImportError:
            raise BuildError("pybind11 is not installed") from None
        includes = [pybind11.get_include(), sysconfig.get_path("include")]
        source = SOURCES / "python/internals.cpp"
        jobs = [*self.kernels(), self._job(source, *(f"-I{path}" for path in includes))]
        links = ["-Wl,-undefined,dynamic_lookup"] if self.target.system == "Darwin" else []
        name = MODULE + sysconfig.get_config_var("EXT_SUFFIX")
        return self._link(self._compile(jobs), name, [*links, *self._torch()], f"PyInit_{MODULE}")

    def _job(self, source: Path, *flags: str, name: str | None = None) -> Job:
        return Job(source, flags, f"{source.stem if name is None else name}.o")

    def _torch(self) -> list[str]:
        """Build the link-time stand-in for torch's library, with its name and functions."""
        stub = self._compile([self._job(SOURCES / "abi/stub.cpp")])
        name = self.target.torch
        flags = []
        if self.target.system == "Windows":
            flags = [f"-Wl,--out-implib,{self.folder / 'torch_cpu.lib'}"]
        made = self._link(stub, name, flags, "*")
        return [str(self.folder / "torch_cpu.lib" if flags else made)]

    def _compile(self, jobs: list[Job]) -> list[Path]:
        self.folder.mkdir(parents=True, exist_ok=True)
        flags = [*self.compiler, *self.flags, *self.extra]
        objects = [self.folder / job.name for job in jobs]
        commands = {
            made: (job.source, [*flags, *job.flags, "-c"])
            for made, job in zip(objects, jobs, strict=True)
            # The library and the module share most objects.
            if made not in self._objects
        }
        if ninja := find_ninja():
            self._compile_with(ninja, commands)
        else:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                runs = [
                    threads.submit(run, [*command, str(source), "-o", str(made)])
                    for made, (source, command) in commands.items()
                ]
            for done in runs:
                done.result()
        self._objects.update(commands)
        return objects

    def _compile_with(self, ninja: str, commands: dict) -> None:
        """Compile with ninja: in parallel, and only changed files, headers included."""

        def escape(path):
            return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

        lines = [
            "rule cxx",
            "  command = $call -MMD -MF $out.d $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
        ]
        for made, (source, command) in commands.items():
            lines.append(f"build {escape(made)}: cxx {escape(source)}")
            lines.append(f"  call = {shlex.join(command).replace('$', '$$')}")
        file = self.folder / "build.ninja"
        file.write_text("\n".join(lines) + "\n")
        run([ninja, "-C", str(self.folder), "-f", str(file)], self.compiler[0])

    def _link(self, objects: list[Path], name: str, with_: list[str], exports: str = "") -> Path:
        made = self.folder / name
        if self.target.system == "Linux":
            # Templates of the C++ library are weak and visible despite the flags.
            script = self.folder / f"{made.stem}.exports"
            script.write_text(
                f"{{ global: {exports}; local: *; }};\n" if exports else "{ local: *; };\n"
            )
            with_ = [*with_, f"-Wl,--version-script,{script}"]
        # A new file, because a process may have loaded the old one.
        made.unlink(missing_ok=True)
        flags = [*self.target.link(name), *map(str, objects), *with_, *self.extra, *self.link_extra]
        run([*self.compiler, *flags, "-o", str(made)])
        return made


def find_compiler() -> list[str]:
    """Return the command of a C++ compiler.

    Raises:
        BuildError: no compiler was found.
    """
    if chosen := shlex.split(os.getenv("CXX", "")):
        if shutil.which(chosen[0]) is None:
            raise BuildError(f"CXX: expected a C++ compiler on PATH, got {chosen[0]}")
        return chosen
    # Microsoft's compiler has no vector types.
    names = ("clang++",) if sys.platform == "win32" else ("c++", "g++", "clang++")
    for name in names:
        if shutil.which(name) is not None:
            return [name]
    raise BuildError(f"no C++ compiler was found ({', '.join(names)} on PATH, or CXX)")


def find_nvcc() -> str:
    """Return the path of nvcc.

    Raises:
        BuildError: it was not found.
    """
    chosen = os.getenv("NVCC", "nvcc")
    found = shutil.which(chosen)
    if found is None:
        raise BuildError(f"{chosen} was not found (nvcc on PATH, or NVCC)")
    return found


def build_cuda(folder: Path) -> list[Path]:
    """Build the kernels of csrc/cuda: PTX, and machine code made from it.

    Args:
        folder: output folder, created if missing.

    Returns:
        Paths of the files.

    Raises:
        BuildError: nvcc was not found, or fails.
    """
    nvcc = find_nvcc()
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for arch in CUDA_ARCHS:
        ptx, cubin = (folder / f"scope_sm_{arch}.{kind}" for kind in ("ptx", "cubin"))
        source = str(SOURCES / "cuda/scope.cu")
        run([nvcc, *CUDA_FLAGS, "-ptx", f"-arch=compute_{arch}", source, "-o", str(ptx)])
        run([nvcc, "-cubin", f"-arch=sm_{arch}", str(ptx), "-o", str(cubin)])
        made += [ptx, cubin]
    return made


def find_ninja() -> str | None:
    """Return the path of ninja, or None if it is not installed."""
    # The ninja of a virtual environment that is not activated is not on PATH.
    scripts = sysconfig.get_path("scripts")
    return shutil.which("ninja", path=os.pathsep.join([scripts, os.environ.get("PATH", "")]))


def run(command: list[str], compiler: str | None = None) -> None:
    """Run a compiler, or a tool that runs `compiler`; its output goes to stderr.

    Raises:
        BuildError: the command fails; the message has the first line with an error.
    """
    try:
        done = subprocess.run(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from None
    print(done.stdout, file=sys.stderr, end="")
    if done.returncode != 0:
        errors = [
            line for line in done.stdout.splitlines() if "error" in line or "not found" in line
        ]
        raise BuildError(
            " ".join(errors[0].split())
            if errors
            else f"{compiler or command[0]} failed without a message"
        )


def main() -> None:
    """Build the operator library alone."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/native"), help="output folder")
    parser.add_argument(
        "--platform", default=sysconfig.get_platform(), help="platform, e.g. linux-aarch64"
    )
    given = parser.parse_args()
    try:
        print(Build(given.out, target_named(given.platform)).library())
    except BuildError as error:
        sys.exit(f"csrc/build.py: {error}")


if __name__ == "__main__":
    main()
