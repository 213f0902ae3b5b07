"""Triton device that emulates: kernels launch on CPU tensors as they would on a GPU.

The launch path is Triton's own: specialisation of arguments, compiler for the requested
architecture, arguments of the launcher. Only the last step differs: the PTX is interpreted.
"""

import contextlib
import functools
import os
import sys
import weakref
from dataclasses import dataclass, field

import numpy as np
import torch

from ptxemu.build import cache_folder
from ptxemu.engine import Finding, Memory, Options, Run, TensorMap, launch, nothing_run
from ptxemu.parser import Program, parse

# Maximum bytes of shared memory of a program.
MOST_SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}


def prepare() -> None:
    """Make Triton compile kernels and keep tensors on the CPU; call before importing Triton."""
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache_folder() / "triton"))
    import triton
    from triton import knobs

    # The variable tells the project to accept CPU tensors; Triton itself must not interpret.
    knobs.propagate_env = False
    knobs.runtime.interpret = False
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.backends.nvidia.compiler import CUDABackend

    # No device, so no assembly.
    CUDABackend.make_cubin = lambda self, src, metadata, opt, capability: b"emulated"
    assert triton.knobs.runtime.interpret is False


@functools.cache
def _parsed(ptx: str) -> Program:
    return parse(ptx)


# -- which bytes were never written


class Unwritten:
    """Storages from `torch.empty` and similar functions, with the bytes that kernels wrote."""

    def __init__(self) -> None:
        self.storages: dict[int, tuple[np.ndarray, int]] = {}
        self.undo = []

    def watch(self) -> None:
        for owner, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (torch, "empty_strided"),
            (torch.Tensor, "new_empty"),
            (torch.Tensor, "new_empty_strided"),
        ):
            plain = getattr(owner, name)
            self.undo.append((owner, name, plain))
            setattr(owner, name, self._wrapped(plain))

    def stop(self) -> None:
        for owner, name, plain in self.undo:
            setattr(owner, name, plain)
        self.undo = []

    def _wrapped(self, plain):
        @functools.wraps(plain)
        def make(*args, **kwargs):
            made = plain(*args, **kwargs)
            if type(made) is torch.Tensor and made.device.type == "cpu" and made.numel():
                self.register(made)
            return made

        return make

    def register(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        self.storages[key] = (np.zeros(storage.nbytes(), np.uint8), tensor._version)
        weakref.finalize(storage, self.storages.pop, key, None)

    def of(self, tensor: torch.Tensor) -> np.ndarray | None:
        """Return one flag per byte of the storage; None if all are written."""
        key = tensor.untyped_storage().data_ptr()
        found = self.storages.get(key)
        if found is None:
            return None
        written, version = found
        try:
            changed = tensor._version != version
        except RuntimeError:  # an inference tensor
            changed = False
        if changed:
            # Torch itself wrote to it since; where, it does not say.
            del self.storages[key]
            return None
        return written


@dataclass
class Record:
    """Record of a launch."""

    kernel: str
    arch: int
    grid: tuple
    num_warps: int
    shared: int
    run: Run
    signature: str


@dataclass
class Emulator:
    """Emulated device.

    Attributes:
        arch: architecture, 80 or 90.
        options: options of the machine; the random seed advances with each launch.
        records: records of the launches so far.
        findings: findings of the launches so far.
        keep_records: flag: keep records, not only counts.
        on_launch: function called after each launch with name, grid, `Run`, memories and scalars.
        edit: function that changes the PTX before it runs, for tests of the checks.
        only_launch: flag: compile and record launches, but do not run them; results are unwritten.
    """

    arch: int
    options: Options = field(default_factory=Options)
    records: list[Record] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unwritten: Unwritten = field(default_factory=Unwritten)
    keep_records: bool = True
    launches: int = 0
    on_launch: object = None
    edit: object = None
    only_launch: bool = False

    def clear(self) -> None:
        self.records, self.findings = [], []

    def execute(self, compiled, grid, arguments: list) -> None:
        """Run a compiled kernel with the arguments of the Python call."""
        ptx = compiled.asm["ptx"]
        program = _parsed(self.edit(ptx) if self.edit else ptx)
        metadata = compiled.metadata
        call = Arguments(self.unwritten, getattr(metadata, "tensordesc_meta", None))
        for (name, kind), argument in zip(compiled.src.signature.items(), arguments, strict=True):
            call.add(name, kind, argument)
        memories, passed, scalars = call.memories, call.passed, call.scalars
        # After the arguments of the source: scratch memory for the program and for profiling.
        scratch = []
        for size in (metadata.global_scratch_size, metadata.profile_scratch_size):
            if size:
                buffer = np.zeros(size * int(np.prod(grid)) + 128, np.uint8)
                scratch.append(buffer)
                memories.append(Memory("scratch", buffer.ctypes.data, buffer.nbytes))
                passed.append((len(memories) - 1, -buffer.ctypes.data % 128))
            else:
                passed.append(0)
        if len(passed) != len(program.params):
            raise RuntimeError(
                f"{program.name} has {len(program.params)} parameters, {len(passed)} were passed"
            )
        signature = ",".join(f"{k}:{v}" for k, v in compiled.src.signature.items())
        sizes = (metadata.num_warps, metadata.shared)
        self._launch(program, grid, passed, memories, sizes, signature, scalars)

    def execute_struct(self, ptx: str, blocks: int, threads: int, structure, values: dict) -> None:
        """Run a kernel whose one parameter is a struct, as nvcc compiles it.

        Args:
            ptx: text of the kernel.
            blocks: number of programs.
            threads: number of threads of a program.
            structure: `ctypes.Structure` of the parameter.
            values: its fields: numbers, tensors, or None.
        """
        program = _parsed(self.edit(ptx) if self.edit else ptx)
        call = Arguments(self.unwritten, None)
        fields = {}
        for name, value in values.items():
            fields[name] = value
            if isinstance(value, torch.Tensor):
                index, inside = call._memory(name, value)
                fields[name] = call.memories[index].address(index) + inside
        sizes = (threads // 32, program.shared_bytes)
        passed = [bytes(structure(**fields))]
        self._launch(program, (blocks, 1, 1), passed, call.memories, sizes, structure.__name__, [])

    def _launch(self, program, grid, passed, memories, sizes, signature, scalars) -> None:
        """Run a program; `sizes` are its warps and its bytes of shared memory."""
        num_warps, shared = sizes
        if shared > MOST_SHARED.get(self.arch, 48 * 1024):
            raise RuntimeError(f"{program.name} needs {shared} bytes of shared memory")
        self.launches += 1
        options = Options(
            **{**self.options.__dict__, "seed": self.options.seed * 1_000_003 + self.launches}
        )
        if min(grid) < 1 or max(grid) > 2**31 - 1 or max(grid[1:]) > 65535:
            raise RuntimeError(f"{program.name}: a grid of {grid}")
        if self.only_launch:
            run = nothing_run(program)
        else:
            run = launch(program, grid, passed, memories, shared, options, num_warps)
        self.findings += run.findings
        if self.keep_records:
            self.records.append(
                Record(program.name, self.arch, grid, num_warps, shared, run, signature)
            )
        if self.on_launch:
            self.on_launch(program.name, grid, run, memories, scalars)
        if run.aborted:
            raise RuntimeError(f"{program.name} stopped: {run.findings[-1]}")


class Arguments:
    """Return the arguments of a call, flattened to the parameters of the kernel."""

    def __init__(self, unwritten: Unwritten, descriptors: list | None) -> None:
        self.unwritten = unwritten
        self.descriptors = iter(descriptors or [])
        self.has_maps = bool(descriptors)
        self.memories, self.passed, self.scalars = [], [], []
        self.index = {}

    def add(self, name: str, kind, argument) -> None:
        """Return one argument, by its type in the signature."""
        if kind == "constexpr":
            return
        if isinstance(kind, tuple):
            names = getattr(argument, "_fields", range(len(kind)))
            for inner, k, a in zip(names, kind, argument, strict=True):
                self.add(f"{name}.{inner}", k, a)
        elif kind.startswith("tensordesc"):
            self._descriptor(name, argument)
        elif isinstance(argument, torch.Tensor):
            self.passed.append(self._memory(name, argument))
        else:
            self.passed.append(argument)
            self.scalars.append(f"{name}={argument}")

    def _memory(self, name: str, tensor: torch.Tensor) -> tuple[int, int]:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self.index:
            self.index[key] = len(self.memories)
            self.memories.append(Memory(name, key, storage.nbytes(), self.unwritten.of(tensor)))
        memory = self.memories[self.index[key]]
        memory.spans.append(extent(tensor))
        if memory.name != name:
            memory.name += f"/{name}"
        return self.index[key], tensor.data_ptr() - key

    def _descriptor(self, name: str, given) -> None:
        shape, strides = list(given.shape), list(given.strides)
        place = self._memory(name, given.base)
        if getattr(given, "round_f32_to_tf32", False):
            raise NotImplementedError("round_f32_to_tf32: how the copy rounds is not published")
        if not self.has_maps:
            # Before sm_90 a descriptor is a pointer with shape and strides.
            self.passed += [
                place,
                *shape,
                *strides,
                int(given.padding == "nan"),
                0,
                *shape,
                *strides,
            ]
            return
        meta = next(self.descriptors)
        if meta["fp4_padded"]:
            raise NotImplementedError("fp4")
        tensor_map = TensorMap(
            *place,
            element=meta["elem_type"],
            shape=tuple(reversed(shape)),
            strides=tuple(s * meta["elem_size"] for s in reversed(strides[:-1])),
            box=tuple(reversed(meta["block_size"])),
            swizzle=meta["swizzle"],
            nan=given.padding == "nan",
        )
        self.passed += [tensor_map, *shape, *strides]


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Return [begin, end) in bytes of the storage that a tensor views."""
    if tensor.numel() == 0:
        return 0, 0
    size = tensor.element_size()
    first = last = tensor.storage_offset()
    for n, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if stride > 0:
            last += (n - 1) * stride
        else:
            first += (n - 1) * stride
    return first * size, (last + 1) * size


class _Utils:
    @staticmethod
    def load_binary(name, kernel, shared, device):
        return object(), object(), 0, 0, 1024

    def get_device_properties(self, device):
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}


class EmulatedDriver:
    """Driver interface of Triton."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.utils = _Utils()
        outer = self

        class Launcher:
            def __init__(self, src, metadata):
                self.src, self.metadata = src, metadata
                self.compiled = None

            def __call__(
                self, x, y, z, stream, function, packed, launch_metadata, enter, leave, *arguments
            ):
                # The compiled kernel holds this launcher; it is found by what it was made from.
                compiled = outer.compiled[id(self.src)]
                outer.emulator.execute(compiled, (x, y, z), list(arguments))

        self.launcher_cls = Launcher
        self.compiled = {}

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.emulator.arch, 32)

    def get_current_device(self):
        # A device of its own for each architecture: Triton's caches go by it.
        return self.emulator.arch

    def get_current_stream(self, device=None):
        return 0

    def set_current_device(self, device):
        pass

    def get_device_capability(self, device=None):
        return divmod(self.emulator.arch, 10)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cpu

    @staticmethod
    def is_active():
        return True

    def map_python_to_cpp_type(self, ty):
        return ty


@contextlib.contextmanager
def emulated(arch: int, options: Options | None = None):
    """Run the kernels launched in the block on the emulator; `prepare` must have run.

    Memory of `torch.empty` counts as unwritten until a kernel writes it.
    """
    if "triton" not in sys.modules:
        raise RuntimeError("call ptxemu.driver.prepare() first")
    from triton.compiler.compiler import CompiledKernel
    from triton.runtime import driver as runtime

    emulator = Emulator(arch, options or Options())
    driver = EmulatedDriver(emulator)
    before, plain = runtime._active, CompiledKernel._init_handles

    def init_handles(self):
        if self.module is None:
            driver.compiled[id(self.src)] = self
        plain(self)

    def run(self):
        # A kernel compiled for another emulator of this process has that emulator's launcher.
        if self._run is None or getattr(self, "_ptxemu", None) is not driver:
            self.module = self._run = None
            self._ptxemu = driver
            self._init_handles()
        return self._run

    plain_run = CompiledKernel.run
    CompiledKernel._init_handles, CompiledKernel.run = init_handles, property(run)
    runtime._active = driver
    emulator.unwritten.watch()
    try:
        yield emulator
    finally:
        emulator.unwritten.stop()
        runtime._active = before
        CompiledKernel._init_handles, CompiledKernel.run = plain, plain_run
