"""Floor, expected time and bottleneck of each Triton kernel, from the counts of its compiled code.

The counts come from `kernel_counts.py`, the rates of the device from `machine.py`. The time of a
kernel is that of its scarcest resource (issue slots, shuffles, shared memory, L2, memory, tensor
cores), or the wait of its warps. Nothing here was measured on a GPU.

    python bench/roofline.py --shapes 64x729x1152 1x729x1152 --dtype bfloat16 --device H200
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from setok_bench.kernel_counts import GROWING
from setok_bench.machine import MACHINES, WARP, Machine
from setok_bench.work import Shape, dtype_name

COUNTS = Path(__file__).parent / "results" / "triton-counts.json"
# Side of the output tiles of the library's matrix product.
_LIBRARY_TILE = 128
SHAPES = tuple(f"{b}x{n}x1152" for b in (1, 8, 64) for n in (256, 576, 729, 2048))


@dataclass(frozen=True)
class Prediction:
    """Prediction for one kernel, or for all launches of torch itself.

    Attributes:
        kernel: name of the kernel.
        launches: number of launches in a forward pass.
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
    # Maximum number of programs on a multiprocessor.
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
    sectors = (count["read_bytes"] + count["written_bytes"]) * images / launches
    reached = count["reached_bytes"] * images / launches
    alone = machine.seconds(busiest * sectors / programs / machine.l2_port)
    parts["L2"] = max(sectors / machine.l2, alone)
    best["L2"] = sectors / machine.l2_best
    parts["memory"] = best["memory"] = min(sectors, reached) / machine.copy
    rounds = math.ceil(programs / (machine.multiprocessors * count["fit"]))
    near = "chain_l2" if reached <= machine.l2_bytes else "chain_memory"
    parts["waiting"] = machine.seconds(rounds * count[near] / launches)
    return Prediction(
        name,
        launches,
        launches * max(best.values()),
        {name: launches * seconds for name, seconds in parts.items()},
        launches * machine.launch_gap,
    )


_FIELDS = {
    "issue": "issue",
    "shuffle": "shuffle",
    "special": "special",
    "fp64": "fp64",
    "shared/L1": "shared_bytes",
    "tensor": "flops",
}


def forward(shape: Shape, machine: Machine, counts: dict | None = None) -> list[Prediction]:
    """Return a prediction for each kernel of `cluster_tokens`, and one for torch's launches.

    Raises:
        ValueError: the counts do not cover such a shape.
    """
    case = find_case(shape, counts or load_counts())
    found = [predict(n, c, shape.images, machine) for n, c in case["kernels"].items()]
    small = case["torch_kernels"]
    parts = {"launches": small * machine.small_kernel}
    return [*found, Prediction("torch", small, 0.0, parts, small * machine.launch_gap)]


def find_case(shape: Shape, counts: dict) -> dict:
    """Return the counts of an image, or a parabola through three other numbers of tokens.

    Raises:
        ValueError: the counts do not cover such a shape.
    """
    wanted = {
        "features": shape.features,
        "k": shape.k,
        "clusters": shape.clusters,
        "dtype": dtype_name(shape.dtype),
    }
    cases = {
        case["shape"]["tokens"]: case
        for case in counts["cases"]
        if all(case["shape"][name] == value for name, value in wanted.items())
    }
    if shape.tokens in cases:
        return cases[shape.tokens]
    if len(cases) < 3 or shape.tokens > max(cases):
        known = ", ".join(f"{n} tokens" for n in sorted(cases)) or "none"
        raise ValueError(
            f"shape: expected one up to the counted ones ({known}) of {shape.features} features, "
            f"{wanted['dtype']}, K = {shape.k}, {shape.clusters} clusters, got {shape}; "
            "bench/kernel_counts.py counts others"
        )
    near = sorted(cases, key=lambda n: abs(n - shape.tokens))[:3]
    return _parabola([cases[n] for n in near], near, shape.tokens)


def _parabola(cases: list[dict], sizes: list[int], size: int) -> dict:
    weights = [
        math.prod((size - b) / (a - b) for b in sizes if b != a) for a in sizes
    ]  # of Lagrange
    kernels = {}
    for name, nearest in cases[0]["kernels"].items():
        sums = {
            field: sum(w * c["kernels"][name][field] for w, c in zip(weights, cases, strict=True))
            for field in GROWING
        }
        kernels[name] = nearest | sums
    how = f"a parabola through {', '.join(map(str, sorted(sizes)))} tokens"
    return cases[0] | {"how": how, "kernels": kernels}


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


def print_shape(shape: Shape, machine: Machine, counts: dict) -> None:
    """Print a line for each kernel, and the sum."""
    how = find_case(shape, counts)["how"]
    print(f"\n{shape}, {dtype_name(shape.dtype)}, {machine.name} ({how})")
    print(f"{'kernel':20} {'launches':>8} {'floor us':>9} {'expected us':>12}  bound by")
    found = forward(shape, machine, counts)
    for p in found:
        times = f"{p.floor * 1e6:9.1f} {p.expected * 1e6:12.1f}"
        print(f"{p.kernel:20} {p.launches:8.0f} {times}  {p.bound}")
    floor, expected = sum(p.floor for p in found), total(found)
    print(f"{'all':20} {sum(p.launches for p in found):8.0f} {floor * 1e6:9.1f}", end=" ")
    bmm = product_seconds(shape, machine)
    print(f"{expected * 1e6:12.1f}  {expected / bmm:.2f} x bmm ({bmm * 1e6:.1f} us)")


def main() -> int:
    """Print a table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="BxNxD")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--device", choices=MACHINES, default="H200")
    parser.add_argument("--counts", type=Path, default=COUNTS, help="result of kernel_counts.py")
    args = parser.parse_args()
    machine = MACHINES[args.device]
    print(machine.described())
    try:
        counts = load_counts(args.counts)
        for dtype in args.dtype:
            for text in args.shapes:
                print_shape(Shape.parse(text, getattr(torch, dtype)), machine, counts)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
