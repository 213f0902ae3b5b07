"""Tables of the documentation: counts and expected times of the forward kernels."""

from __future__ import annotations

import torch

from setok_bench import roofline
from setok_bench.machine import H200, SECTOR, Machine
from setok_bench.tables import Table
from setok_bench.work import Shape, dtype_name

LARGE = Shape(64, 729, 1152)
BEFORE = roofline.COUNTS.with_name("triton-counts-before.json")


def kernel_tables(counts: dict, before: dict, machine: Machine = H200) -> list[Table]:
    """Return the tables of counts and expected times, earlier and now, and of the bounds."""
    earlier = _counts_table("before", before, machine)
    now = _counts_table("now", counts, machine)
    return [earlier, now, bounds_table(counts, machine), shapes_table(counts, machine)]


def _counts_table(when: str, counts: dict, machine: Machine) -> Table:
    case = roofline.find_case(LARGE, counts)
    predicted = {p.kernel: p for p in roofline.forward(LARGE, machine, counts)}
    lines = []
    for name, c in case["kernels"].items():
        # Code that the assembler moved after a loop jumps back and looks like an outer loop.
        loop = max(
            c["loops"], key=lambda t: (round(t["turns"] * t["barriers"]), t["turns"]), default=None
        )
        warps = c["programs"] * c["num_warps"]
        lines.append(
            (
                name,
                f"{c['launches']:.0f}",
                _count(c["issue"]),
                f"{c['barrier'] / warps:.1f}",
                "–" if loop is None else _turns(loop),
                _count((c["read_bytes"] + c["written_bytes"]) / SECTOR),
                str(c["registers"]),
                str(c["spills"]),
                _microseconds(predicted[name].expected),
            )
        )
    torch_kernels = predicted["torch"]
    lines.append(
        (
            "torch's own",
            f"{torch_kernels.launches:.0f}",
            *6 * ("–",),
            _microseconds(torch_kernels.expected),
        )
    )
    total = roofline.total([*predicted.values()])
    lines.append(
        (
            "all",
            f"{sum(p.launches for p in predicted.values()):.0f}",
            _count(sum(c["issue"] for c in case["kernels"].values())),
            *2 * ("–",),
            _count(
                sum(c["read_bytes"] + c["written_bytes"] for c in case["kernels"].values()) / SECTOR
            ),
            *2 * ("–",),
            _microseconds(total),
        )
    )
    header = ("kernel", "launches", "instructions an image", "barriers a warp")
    header += ("turns: instructions, barriers", "L2 sectors an image", "registers", "spills")
    header += (f"expected us, {LARGE.images} images",)
    over = total / roofline.product_seconds(LARGE, machine)
    note = f"Commit {counts['commit'][:10]}; {over:.2f} times the product it is compared with."
    return Table(f"{when}, {LARGE}, {dtype_name(LARGE.dtype)}", header, lines, (note,))


def bounds_table(counts: dict, machine: Machine) -> Table:
    """Return the microseconds of each kernel by resource, each alone."""
    lines, names = [], None
    for images in (1, 64):
        shape = Shape(images, LARGE.tokens, LARGE.features)
        for p in roofline.forward(shape, machine, counts):
            if p.kernel == "torch":
                continue
            names = names or list(p.parts)
            times = (_microseconds(p.parts[name]) for name in names)
            lines.append((f"{images} x {p.kernel}", *times, _microseconds(p.floor), p.bound))
    header = ("images x kernel", *(names or ()), "floor", "bound by")
    return Table("microseconds by what is taken, each alone, without gaps", header, lines)


def shapes_table(counts: dict, machine: Machine) -> Table:
    """Return the expected times of the forward pass at all shapes, over the matrix product."""
    lines = []
    for dtype in (torch.bfloat16, torch.float32):
        for text in roofline.SHAPES:
            shape = Shape.parse(text, dtype)
            expected = roofline.total(roofline.forward(shape, machine, counts))
            product = roofline.product_seconds(shape, machine)
            lines.append(
                (
                    f"{shape}, {dtype_name(dtype)}",
                    _microseconds(expected),
                    _microseconds(product),
                    f"{expected / product:.2f}",
                    roofline.find_case(shape, counts)["how"],
                )
            )
    header = ("B x N x D", "forward us", "bmm us", "over bmm", "counts")
    return Table("expected time of a forward pass", header, lines)


def _turns(loop: dict) -> str:
    return f"{loop['turns']:.0f}: {loop['instructions']:.0f}, {loop['barriers']:g}"


def _count(value: float) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"
