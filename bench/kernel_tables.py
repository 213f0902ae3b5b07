"""Tables of the documentation: counts and expected times of the Triton kernels of each pass."""

from __future__ import annotations

import torch

from setok_bench import roofline
from setok_bench.machine import H200, SECTOR, Machine
from setok_bench.passes import PASSES
from setok_bench.tables import Table
from setok_bench.work import Shape, dtype_name

LARGE, SMALL = Shape(64, 729, 1152), Shape(1, 729, 1152)
LONG = (Shape(1, 16384, 1152), Shape(1, 65536, 1152))
# Passes of one table, and its shape. Soft merging has few kernels.
TABLED = (
    (("forward",), LARGE),
    (("backward",), LARGE),
    (("streaming",), LONG[0]),
    (tuple(name for name in PASSES if "merge" in name), SMALL),
)
# Earlier counts: of forward passes, and of the other passes, which were counted later.
BEFORE = roofline.COUNTS.with_name("triton-counts-before.json")
BEFORE_PASSES = roofline.COUNTS.with_name("triton-counts-before-passes.json")


def committed_before() -> dict[str, dict]:
    """Return the earlier counts to compare each pass with."""
    forward, others = map(roofline.load_counts, (BEFORE, BEFORE_PASSES))
    return {name: forward if name == "forward" else others for name in PASSES}


def kernel_tables(counts: dict, before: dict[str, dict], machine: Machine = H200) -> list[Table]:
    """Return the tables of counts and expected times, earlier and now, and of the bounds.

    Args:
        counts: result of `kernel_counts.py`.
        before: earlier result by pass.
        machine: device.
    """
    tables = [sums_table(counts, before, machine)]
    for names, shape in TABLED:
        tables.append(_counts_table("before", names, shape, before[names[0]], machine))
        tables.append(_counts_table("now", names, shape, counts, machine))
    return [*tables, bounds_table(counts, machine), shapes_table(counts, machine)]


def sums_table(counts: dict, before: dict[str, dict], machine: Machine) -> Table:
    """Return the expected times of whole passes, earlier and now."""
    rows = [("forward", LARGE), ("forward", SMALL), ("backward", LARGE), ("backward", SMALL)]
    rows += [("streaming", shape) for shape in LONG]
    rows += [(name, SMALL) for name in TABLED[-1][0]]
    lines = []
    for name, shape in rows:
        times = (
            roofline.total(roofline.predictions(name, shape, machine, given))
            for given in (before[name], counts)
        )
        how = roofline.find_case(shape, counts, name)["how"]
        lines.append((f"{name}, {shape}, us", *map(_microseconds, times), how))
    # Both passes of the same commit.
    ratios = (
        roofline.training_over_forward(LARGE, machine, given)
        for given in (before["backward"], counts)
    )
    ratio = (f"{value:.2f}" for value in ratios)
    lines.append((f"forward and backward over forward, {LARGE}", *ratio, "counted"))
    commits = "; ".join(f"{name} {before[name]['commit'][:10]}" for name in ("forward", "backward"))
    note = f"Commits before: {commits}, and that of backward for all other lines."
    header = ("pass, bfloat16", "before", "now", "counts")
    return Table("expected time of each pass", header, lines, (note,))


def _counts_table(
    when: str, names: tuple[str, ...], shape: Shape, counts: dict, machine: Machine
) -> Table:
    lines, totals, notes = [], [], []
    for name in names:
        case = roofline.find_case(shape, counts, name)
        found = {p.kernel: p for p in roofline.predictions(name, shape, machine, counts)}
        prefix = f"{name}: " if len(names) > 1 else ""
        lines += [
            _kernel_line(prefix + kernel, c, shape, found[kernel].expected, machine)
            for kernel, c in case["kernels"].items()
        ]
        own = found["torch"]
        cells = (f"{own.launches:.0f}", *6 * ("–",), _microseconds(own.expected))
        lines.append((f"{prefix}torch's own", *cells))
        totals.append(roofline.total([*found.values()]))
        lines.append(_sum_line(f"{prefix}all", case, [*found.values()], shape, machine))
        if case["how"] != "counted":
            notes.append(f"Counts {case['how']}; loops are those of the last of these.")
    header = ("kernel", "launches", "instructions an image", "barriers a warp")
    header += ("turns: instructions, barriers", "L2 sectors an image", "registers", "spills")
    images = "1 image" if shape.images == 1 else f"{shape.images} images"
    header += (f"expected us, {images}",)
    note = f"Commit {counts['commit'][:10]}"
    if names == ("forward",):
        over = totals[0] / roofline.product_seconds(shape, machine)
        note += f"; {over:.2f} times the product it is compared with"
    notes.insert(0, f"{note}.")
    title = f"{', '.join(names)}, {when}, {shape}, {dtype_name(shape.dtype)}"
    return Table(title, header, lines, tuple(notes))


def _kernel_line(
    name: str, c: dict, shape: Shape, expected: float, machine: Machine
) -> tuple[str, ...]:
    # Code that the assembler moved after a loop jumps back and looks like an outer loop.
    loop = max(
        c["loops"], key=lambda t: (round(t["turns"] * t["barriers"]), t["turns"]), default=None
    )
    warps = c["programs"] * c["num_warps"]
    return (
        name,
        f"{c['launches']:.0f}",
        _count(c["issue"]),
        f"{c['barrier'] / warps:.1f}",
        "–" if loop is None else _turns(loop),
        _count(roofline.l2_bytes(c, shape.images, machine) / SECTOR),
        str(c["registers"]),
        str(c["spills"]),
        _microseconds(expected),
    )


def _sum_line(
    name: str,
    case: dict,
    found: list[roofline.Prediction],
    shape: Shape,
    machine: Machine,
) -> tuple[str, ...]:
    kernels = case["kernels"].values()
    moved = sum(roofline.l2_bytes(c, shape.images, machine) for c in kernels)
    return (
        name,
        f"{sum(p.launches for p in found):.0f}",
        _count(sum(c["issue"] for c in kernels)),
        *2 * ("–",),
        _count(moved / SECTOR),
        *2 * ("–",),
        _microseconds(roofline.total(found)),
    )


def bounds_table(counts: dict, machine: Machine) -> Table:
    """Return the microseconds of each kernel by resource, each alone."""
    rows = [("forward", SMALL), ("forward", LARGE), ("backward", SMALL), ("backward", LARGE)]
    rows.append(("streaming", LONG[0]))
    lines, names = [], None
    for name, shape in rows:
        for p in roofline.predictions(name, shape, machine, counts):
            if p.kernel == "torch":
                continue
            names = names or list(p.parts)
            times = (_microseconds(p.parts[part]) for part in names)
            sizes = f"{shape.images} x {shape.tokens}"
            cells = (*times, _microseconds(p.floor), p.bound)
            lines.append((f"{name}, {sizes}, {p.kernel}", *cells))
    header = ("pass, images x tokens, kernel", *(names or ()), "floor", "bound by")
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
