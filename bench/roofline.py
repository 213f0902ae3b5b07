"""Floor, expected time and bottleneck of each Triton kernel, from the counts of its compiled code.

The counts come from `kernel_counts.py`, the rates of the device from `machine.py`. The time of a
kernel is that of its scarcest resource (issue slots, shuffles, shared memory, L2, memory, tensor
cores), or the wait of its warps. Nothing here was measured on a GPU.

L1 serves the lanes of one load. It also keeps the sectors that a program has read by cacheable
loads, if the distinct sectors and the shared memory of all programs that a multiprocessor holds at
once fit into it: L2 then delivers each of these sectors once a program, and further reads count as
traffic of L1 with its latency. Otherwise every read beyond one load comes from L2. Programs share
nothing through L1.

    python bench/roofline.py --shapes 64x729x1152 1x729x1152 --dtype bfloat16 --device H200
    python bench/roofline.py --pass backward streaming
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from setok_bench.growth import extrapolated, parabola
from setok_bench.kernel_counts import GROWING
from setok_bench.machine import MACHINES, WARP, Machine
from setok_bench.passes import PASSES
from setok_bench.work import Shape, dtype_name

COUNTS = Path(__file__).parent / "results" / "triton-counts.json"
# Side of the output tiles of the library's matrix product.
_LIBRARY_TILE = 128
SHAPES = tuple(f"{b}x{n}x1152" for b in (1, 8, 64) for n in (256, 576, 729, 2048))
# Shapes to print of each pass.
PASS_SHAPES = {
    "forward": SHAPES,
    "backward": ("1x729x1152", "8x729x1152", "64x729x1152", "1x2048x1152"),
    "streaming": ("1x4096x1152", "1x16384x1152", "1x65536x1152"),
}
_OTHER_SHAPES = ("1x729x1152", "64x729x1152")


@dataclass(frozen=True)
class Prediction:
    """Prediction for one kernel, or for all launches of torch itself.

    Attributes:
        kernel: name of the kernel.
        launches: number of launches in a pass.
        floor: seconds at peak rates, with all multiprocessors busy and no waits.
        parts: seconds by resource, each alone, for the distribution of the programs.
        gap: seconds between its launches and the previous ones.
    """

    kernel: str
    launches: float
    floor: float
    parts: dict[str, float]
    gap: float

    @property
    def bound(self) -> str:
        """Name of the scarcest resource."""
        return max(self.parts, key=self.parts.get)

    @property
    def expected(self) -> float:
        """Expected seconds, including the gaps before the launches."""
        return self.parts[self.bound] + self.gap


def load_counts(path: Path = COUNTS) -> dict:
    """Read the result of `kernel_counts.py`.

    Raises:
        OSError: the file cannot be read.
    """
    return json.loads(path.read_text())


def predict(name: str, count: dict, images: int, machine: Machine) -> Prediction:
    """Predict the time of one kernel on a batch, from the counts of one image."""
    launches = count["launches"]
    programs = count["programs"] * images / launches
    # Maximum number of programs on a multiprocessor, and of those that it holds at once.
    busiest = math.ceil(programs / machine.multiprocessors)
    resident = min(count["fit"], busiest)
    # Each of the four schedulers issues one instruction per clock for a quarter of the warps.
    rates = {
        "issue": min(machine.issue, resident * count["num_warps"]),
        "shuffle": machine.shuffle,
        "special": machine.special,
        "fp64": machine.fp64,
        "shared/L1": machine.shared,
        "tensor": machine.matmul / machine.multiprocessors / machine.clock,
    }
    work = {name: count[_FIELDS[name]] * images / launches for name in rates}
    parts = {
        name: machine.seconds(busiest * work[name] / programs / rate)
        for name, rate in rates.items()
    }
    best = {
        name: machine.seconds(work[name] / machine.multiprocessors / rate)
        for name, rate in rates.items()
    }
    hits = l1_hits(count, images, machine)
    sectors = l2_bytes(count, images, machine) * images / launches
    reached = count["reached_bytes"] * images / launches
    alone = machine.seconds(busiest * sectors / programs / machine.l2_port)
    parts["L2"] = max(sectors / machine.l2, alone)
    best["L2"] = sectors / machine.l2_best
    parts["memory"] = best["memory"] = min(sectors, reached) / machine.copy
    rounds = math.ceil(programs / (machine.multiprocessors * count["fit"]))
    far = "l2" if reached <= machine.l2_bytes else "memory"
    mean, longest = (_waiting(count, chain, far, hits) for chain in ("chain", "longest"))
    if count.get("longest_first_bytes", 0) / launches + count["shared"] > machine.l1_bytes:
        longest = _waiting(count, "longest", far, 0)
    clocks = (rounds - 1) * mean + max(mean, longest)
    parts["waiting"] = machine.seconds(clocks / launches)
    return Prediction(
        name,
        launches,
        launches * max(best.values()),
        {name: launches * seconds for name, seconds in parts.items()},
        launches * machine.launch_gap,
    )


def l2_bytes(count: dict, images: int, machine: Machine) -> float:
    """Return the bytes of one image that a kernel moves to and from L2 in a batch of `images`."""
    hits = l1_hits(count, images, machine)
    return (1 - hits) * count["read_bytes"] + count["written_bytes"]


def l1_hits(count: dict, images: int, machine: Machine) -> float:
    """Return the fraction of `read_bytes` that L1 serves, by the rule of the module's docstring.

    Counts of an earlier format have no numbers for it: nothing is served.
    """
    kept, first = count.get("kept_bytes", 0), count.get("first_bytes", 0)
    programs = count["programs"] * images / count["launches"]
    resident = min(count["fit"], math.ceil(programs / machine.multiprocessors))
    footprint = first / count["programs"] + count["shared"]
    if not kept or resident * footprint > machine.l1_bytes:
        return 0.0
    return (kept - first) / count["read_bytes"]


def _waiting(count: dict, chain: str, far: str, hits: float) -> float:
    near = count.get(f"{chain}_l1", 0)
    return hits * near + (1 - hits) * count.get(f"{chain}_{far}", 0)


_FIELDS = {
    "issue": "issue",
    "shuffle": "shuffle",
    "special": "special",
    "fp64": "fp64",
    "shared/L1": "shared_bytes",
    "tensor": "flops",
}


def predictions(
    name: str, shape: Shape, machine: Machine, counts: dict | None = None
) -> list[Prediction]:
    """Return a prediction for each kernel of a pass, and one for torch's launches.

    Args:
        name: name of the pass, see `passes.PASSES`.
        shape: sizes of the batch.
        machine: device.
        counts: result of `kernel_counts.py`; None for the committed one.

    Raises:
        ValueError: the counts do not cover such a shape.
    """
    case = find_case(shape, counts or load_counts(), name)
    found = [predict(n, c, shape.images, machine) for n, c in case["kernels"].items()]
    small = case["torch_kernels"]
    parts = {"launches": small * machine.small_kernel}
    return [*found, Prediction("torch", small, 0.0, parts, small * machine.launch_gap)]


def forward(shape: Shape, machine: Machine, counts: dict | None = None) -> list[Prediction]:
    """Return the predictions of `cluster_tokens` with kept distance rows."""
    return predictions("forward", shape, machine, counts)


def backward(shape: Shape, machine: Machine, counts: dict | None = None) -> list[Prediction]:
    """Return the predictions of the backward pass of `cluster_tokens`, without the forward pass."""
    return predictions("backward", shape, machine, counts)


def streaming(shape: Shape, machine: Machine, counts: dict | None = None) -> list[Prediction]:
    """Return the predictions of `cluster_tokens` without kept distance rows."""
    return predictions("streaming", shape, machine, counts)


def training_over_forward(shape: Shape, machine: Machine, counts: dict | None = None) -> float:
    """Return the expected time of forward and backward pass over that of the forward pass."""
    ahead, back = (total(f(shape, machine, counts)) for f in (forward, backward))
    return (ahead + back) / ahead


def find_case(shape: Shape, counts: dict, name: str = "forward") -> dict:
    """Return the counts of an image at any number of tokens up to the counted ones.

    Between them it is a parabola through three of them. The streaming pass is extrapolated beyond
    them.

    Raises:
        ValueError: the counts do not cover such a shape.
    """
    wanted = {
        "features": shape.features,
        "k": shape.k,
        "clusters": shape.clusters,
        "dtype": dtype_name(shape.dtype),
    }
    cases, launched = {}, {}
    for case in counts["cases"]:
        # The first format had forward passes alone.
        of_pass = case.get("pass", "forward") == name
        if of_pass and all(case["shape"][field] == value for field, value in wanted.items()):
            found = launched if case["how"].startswith("launched") else cases
            found[case["shape"]["tokens"]] = case
    if shape.tokens in cases:
        return cases[shape.tokens]
    beyond = bool(cases) and shape.tokens > max(cases)
    if len(cases) < 3 or (beyond and name != "streaming"):
        known = ", ".join(f"{n} tokens" for n in sorted(cases)) or "none"
        raise ValueError(
            f"shape: expected one up to the counted ones of the pass {name} ({known}) of "
            f"{shape.features} features, {wanted['dtype']}, K = {shape.k}, {shape.clusters} "
            f"clusters, got {shape}; bench/kernel_counts.py counts others"
        )
    if beyond:
        return extrapolated(cases, shape.tokens, GROWING, launched.get(shape.tokens))
    near = sorted(cases, key=lambda n: abs(n - shape.tokens))[:3]
    return parabola({n: cases[n] for n in near}, shape.tokens, GROWING)


def product_seconds(shape: Shape, machine: Machine) -> float:
    """Return the seconds of `torch.bmm(x, x.mT)`: whole tiles of 128 x 128, at the peak rate."""
    side = math.ceil(shape.tokens / _LIBRARY_TILE)
    busiest = math.ceil(shape.images * side**2 / machine.multiprocessors)
    flops = 2 * _LIBRARY_TILE**2 * shape.features
    if shape.dtype == torch.float32:
        # Without tensor cores: one multiply-add per lane in each issue slot.
        rate = 2 * WARP * machine.issue * machine.clock
    else:
        rate = machine.matmul / machine.multiprocessors
    size = shape.dtype.itemsize
    moved = size * shape.images * (shape.tokens * shape.features + shape.tokens**2)
    return max(busiest * flops / rate, moved / machine.copy) + machine.launch_gap


def total(predictions: list[Prediction]) -> float:
    """Return the expected seconds of all predictions."""
    return sum(p.expected for p in predictions)


def print_shape(name: str, shape: Shape, machine: Machine, counts: dict) -> None:
    """Print a line for each kernel of a pass, and the sum."""
    how = find_case(shape, counts, name)["how"]
    print(f"\n{name}, {shape}, {dtype_name(shape.dtype)}, {machine.name} ({how})")
    print(f"{'kernel':20} {'launches':>8} {'floor us':>9} {'expected us':>12}  bound by")
    found = predictions(name, shape, machine, counts)
    for p in found:
        times = f"{p.floor * 1e6:9.1f} {p.expected * 1e6:12.1f}"
        print(f"{p.kernel:20} {p.launches:8.0f} {times}  {p.bound}")
    floor, expected = sum(p.floor for p in found), total(found)
    print(f"{'all':20} {sum(p.launches for p in found):8.0f} {floor * 1e6:9.1f}", end=" ")
    bmm = product_seconds(shape, machine)
    print(f"{expected * 1e6:12.1f}  {expected / bmm:.2f} x bmm ({bmm * 1e6:.1f} us)")
    if name == "backward":
        ratio = training_over_forward(shape, machine, counts)
        print(f"forward + backward over forward: {ratio:.2f}")


def main() -> int:
    """Print a table for each pass and shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pass", nargs="+", choices=PASSES, dest="passes", help="in place of all that were counted"
    )
    parser.add_argument("--shapes", nargs="+", metavar="BxNxD", help="in place of the usual ones")
    parser.add_argument("--dtype", nargs="+", help="in place of those that were counted")
    parser.add_argument("--device", choices=MACHINES, default="H200")
    parser.add_argument("--counts", type=Path, default=COUNTS, help="result of kernel_counts.py")
    args = parser.parse_args()
    machine = MACHINES[args.device]
    print(machine.described())
    try:
        counts = load_counts(args.counts)
        counted = dict.fromkeys(case.get("pass", "forward") for case in counts["cases"])
        for name in args.passes or counted:
            for dtype in args.dtype or dict.fromkeys(d for d, _ in PASSES[name].shapes):
                for text in args.shapes or PASS_SHAPES.get(name, _OTHER_SHAPES):
                    shape = Shape.parse(text, getattr(torch, dtype))
                    print_shape(name, shape, machine, counts)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
