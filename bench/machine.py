"""Rates and latencies of the GPUs that `bench/roofline.py` predicts times for."""

from dataclasses import dataclass, replace

# Threads of a warp, and bytes of a sector, the unit in which L2 is read.
WARP, SECTOR = 32, 32


@dataclass(frozen=True)
class Machine:
    """A GPU model. Rates of a multiprocessor are per clock, of the whole device per second.

    Attributes:
        name: name of the device.
        multiprocessors: number of multiprocessors.
        clock: clocks per second.
        issue: warp instructions of a multiprocessor.
        shuffle: warp shuffles and warp reductions of a multiprocessor.
        special: warp instructions such as exp2 and reciprocal of a multiprocessor.
        fp64: float64 warp instructions of a multiprocessor.
        shared: bytes of shared memory of a multiprocessor.
        l2_port: bytes from L2 of a multiprocessor when the others are idle.
        l2: bytes per second from L2 to all multiprocessors.
        l2_best: bytes per second from L2 to all multiprocessors, optimistic estimate.
        copy: bytes per second of memory, read and written.
        matmul: flop per second of 16-bit products on tensor cores.
        l2_bytes: size of the L2 cache in bytes.
        l1_bytes: size of L1 and shared memory of a multiprocessor together in bytes.
        launch_gap: seconds between the end of a kernel and the start of the next.
        small_kernel: seconds of a torch kernel that fills or copies almost nothing.
        latency: clocks until the result of an instruction, by kind.
        measured: flag: `copy` and `matmul` were measured.
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
    l1_bytes: float
    launch_gap: float
    small_kernel: float
    latency: dict[str, int]
    measured: bool

    def seconds(self, clocks: float) -> float:
        """Return the seconds of `clocks` clocks."""
        return clocks / self.clock

    def described(self) -> str:
        """Return the rates with their units, and which of them are assumed."""
        origin = "measured" if self.measured else "estimated"
        return (
            f"{self.name}: {self.multiprocessors} multiprocessors, {self.clock / 1e9:g} GHz; each "
            f"makes {self.issue:g} warp instructions, {self.shuffle:g} shuffle and "
            f"{self.special:g} special instructions a clock and moves {self.shared:g} B of shared "
            f"memory; memory {self.copy / 1e12:g} TB/s, products {self.matmul / 1e12:g} TFLOP/s "
            f"({origin}). Assumed: L2 {self.l2 / 1e12:g} TB/s ({self.l2_best / 1e12:g} at best), "
            f"{self.l2_port:g} B a clock for one multiprocessor, {self.launch_gap * 1e6:g} us "
            f"between kernels, {self.latency['memory']} clocks from memory, {self.latency['l2']} "
            f"from L2 and {self.latency['l1']} from L1"
        )


# Not measured on the device: limits of the published range for Hopper.
ASSUMED = ("l2", "l2_best", "l2_port", "launch_gap", "small_kernel", "latency")

_LATENCY = {
    "memory": 600,
    "l1": 40,
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
    l1_bytes=256 * 1024,
    launch_gap=1e-6,
    small_kernel=1e-6,
    latency=_LATENCY,
    measured=True,
)
# The same chip with slower memory; the copy rate is 0.9 of the nominal 3.35 TB/s.
H100 = replace(H200, name="H100", copy=3.0e12, measured=False)

MACHINES = {machine.name: machine for machine in (H200, H100)}
