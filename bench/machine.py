"""The GPUs that times are predicted for: what each does at best, and how long it waits.

Every number of `bench/roofline.py` that is no count of the compiled code stands here.
"""

from dataclasses import dataclass, replace

# Threads of a warp, and bytes of a sector, the unit in which L2 is read.
WARP, SECTOR = 32, 32


@dataclass(frozen=True)
class Machine:
    """One kind of GPU. A rate of a multiprocessor is per clock, of the whole device per second.

    Attributes:
        name: of the device.
        multiprocessors: number of them.
        clock: clocks per second.
        issue: warp instructions of a multiprocessor.
        shuffle: warp shuffles and warp reductions of a multiprocessor.
        special: warp instructions of exp2, reciprocal and the like of a multiprocessor.
        fp64: warp instructions on float64 of a multiprocessor.
        shared: bytes of shared memory of a multiprocessor.
        l2_port: bytes from L2 of a multiprocessor, where the others read nothing.
        l2: bytes per second from L2 to all multiprocessors.
        l2_best: likewise, the upper end of what is thought possible.
        copy: bytes per second of memory, read and written.
        matmul: flop per second of 16-bit products on tensor cores.
        l2_bytes: size of the L2 cache.
        launch_gap: seconds between the end of a kernel and the start of the next.
        small_kernel: seconds of one of torch's own that fills or copies next to nothing.
        latency: clocks until the result of an instruction is there, by kind.
        measured: whether `copy` and `matmul` were measured.
    """

    name: str
    multiprocessors: int
    clock: float
    issue: float
    shuffle: float
    special: float
    fp64: float
    shared: float
    l2_port: float
    l2: float
    l2_best: float
    copy: float
    matmul: float
    l2_bytes: float
    launch_gap: float
    small_kernel: float
    latency: dict[str, int]
    measured: bool

    def seconds(self, clocks: float) -> float:
        """Of so many clocks."""
        return clocks / self.clock

    def described(self) -> str:
        """Its numbers with their units, and which of them are assumed."""
        said = "measured" if self.measured else "estimated"
        return (
            f"{self.name}: {self.multiprocessors} multiprocessors, {self.clock / 1e9:g} GHz; each "
            f"makes {self.issue:g} warp instructions, {self.shuffle:g} shuffle and "
            f"{self.special:g} special instructions a clock and moves {self.shared:g} B of shared "
            f"memory; memory {self.copy / 1e12:g} TB/s, products {self.matmul / 1e12:g} TFLOP/s "
            f"({said}). Assumed: L2 {self.l2 / 1e12:g} TB/s ({self.l2_best / 1e12:g} at best), "
            f"{self.l2_port:g} B a clock for one multiprocessor, {self.launch_gap * 1e6:g} us "
            f"between kernels, {self.latency['memory']} clocks from memory and "
            f"{self.latency['l2']} from L2"
        )


# Nobody measured these on the device: the ends of what is published for Hopper.
ASSUMED = ("l2", "l2_best", "l2_port", "launch_gap", "small_kernel", "latency")

_LATENCY = {
    "memory": 600,
    "l2": 270,
    "shared": 30,
    "shuffle": 24,
    "special": 22,
    "barrier": 30,
    "tensor": 64,
    "constant": 30,
    "other": 16,
}

H200 = Machine(
    name="H200",
    multiprocessors=132,
    clock=1.755e9,
    issue=4,
    shuffle=1,
    special=16 / WARP,
    fp64=64 / WARP,
    shared=128,
    l2_port=64,
    l2=5.5e12,
    l2_best=10e12,
    copy=4.3e12,
    matmul=790e12,
    l2_bytes=50e6,
    launch_gap=1e-6,
    small_kernel=1e-6,
    latency=_LATENCY,
    measured=True,
)
# The same chip with slower memory; its copy rate is 0.9 of the 3.35 TB/s it is sold with.
H100 = replace(H200, name="H100", copy=3.0e12, measured=False)

MACHINES = {machine.name: machine for machine in (H200, H100)}
