"""Count instructions and memory accesses of the Triton kernels of each pass without a GPU.

Triton compiles every launch for Hopper. The emulator of tests/ptxemu runs the PTX and counts its
lines. The assembler gives the machine code of each line (`sass.py`). Counts are for one image,
because kernels do the same for each. Such a process cannot use Triton's interpreter. `passes.py`
has the passes and the usual sizes.

    python bench/kernel_counts.py --out bench/results/triton-counts.json
    python bench/kernel_counts.py --checkout ../earlier --pass forward --shapes 729x1152
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from setok_bench.machine import H200, SECTOR
from setok_bench.passes import CLUSTERS, PASSES, K, counting_torch, distance_rows

SCHEMA = 1
ARCH = 90
EMULATOR = Path(__file__).resolve().parent.parent / "tests"
# Shape that the tests compare with the committed counts: takes seconds, not minutes.
GATE = (160, 64)
# Passes of batches: tests compare their counts with those of three images.
BATCHES = ("forward", "backward")
_WIDTH = re.compile(r"ld\.global\S*?(?:\.v(?P<vector>\d))?\.[a-z](?P<bits>\d+)\b")
_PRODUCT = re.compile(r"\.m(\d+)n(\d+)k(\d+)")
# Columns of an instruction of the emulator, see `Ins` in tests/ptxemu/core/launch.h.
_IMM, _IMM2 = 12, 13
# Counts of a kernel that grow with its work. The other fields describe the build.
GROWING = (
    "launches",
    "programs",
    "issue",
    "ptx",
    "shuffle",
    "special",
    "barrier",
    "fp64",
    "shared_bytes",
    "read_bytes",
    "kept_bytes",
    "first_bytes",
    "written_bytes",
    "reached_bytes",
    "flops",
    "chain_l1",
    "chain_l2",
    "chain_memory",
    "longest_l1",
    "longest_l2",
    "longest_memory",
    "longest_first_bytes",
)
_NEAREST = ("l1", "l2", "memory")


@dataclass
class KernelCount:
    """Counts of one kernel for an image, over all its launches in a pass.

    Attributes:
        launches: number of launches.
        programs: number of programs of all launches.
        num_warps: warps of a program.
        registers: registers of a thread.
        spills: bytes spilled or on the stack, per thread.
        shared: bytes of shared memory of a program.
        fit: number of programs that a multiprocessor holds at once.
        issue: warp machine instructions, one issue slot each.
        ptx: warp PTX instructions, as emulated.
        shuffle: machine instructions that are shuffles or warp reductions.
        special: machine instructions such as exp2 and reciprocal.
        barrier: machine instructions that are barriers.
        fp64: machine instructions on float64.
        shared_bytes: bytes through shared memory and L1 (one unit), with bank conflicts and the
            reads of tensor cores.
        read_bytes: bytes read from L2, if L1 serves only lanes of one load.
        kept_bytes: bytes of these that are read by loads that L1 keeps.
        first_bytes: bytes of distinct sectors that a program reads by such loads, summed over the
            programs.
        written_bytes: bytes written to L2.
        reached_bytes: bytes of all tensors that were passed.
        flops: flops on tensor cores.
        chain_l1: clocks of one warp alone, with loads from L1, but copies from L2.
        chain_l2: clocks of one warp alone, with loads from L2.
        chain_memory: clocks of one warp alone, with loads from memory.
        longest_l1: like `chain_l1`, of the program that executes most, not the mean program.
        longest_l2: the same with loads from L2.
        longest_memory: the same with loads from memory.
        longest_first_bytes: `first_bytes` of that program.
        loops: main loops, each with source line, turns of a warp, and PTX instructions, shuffles
            and barriers of a turn.
    """

    launches: float = 0
    programs: float = 0
    num_warps: int = 0
    registers: int = 0
    spills: int = 0
    shared: int = 0
    fit: int = 0
    issue: float = 0
    ptx: float = 0
    shuffle: float = 0
    special: float = 0
    barrier: float = 0
    fp64: float = 0
    shared_bytes: float = 0
    read_bytes: float = 0
    kept_bytes: float = 0
    first_bytes: float = 0
    written_bytes: float = 0
    reached_bytes: float = 0
    flops: float = 0
    chain_l1: float = 0
    chain_l2: float = 0
    chain_memory: float = 0
    longest_l1: float = 0
    longest_l2: float = 0
    longest_memory: float = 0
    longest_first_bytes: float = 0
    loops: list[dict] = field(default_factory=list)


def find_emulator() -> None:
    """Make `ptxemu` importable, and make Triton compile for it.

    Raises:
        RuntimeError: the emulator is missing, or Triton was imported before.
    """
    if sys.modules.get("triton") is not None:
        raise RuntimeError("kernel counts: expected a process without triton, got one that has it")
    if str(EMULATOR) not in sys.path:
        # Appended, because other folders of the tests have names of installed packages.
        sys.path.append(str(EMULATOR))
    try:
        driver = importlib.import_module("ptxemu.driver")
    except ImportError as error:
        raise RuntimeError(
            f"kernel counts: expected the emulator in {EMULATOR / 'ptxemu'}, got {error}"
        ) from error
    driver.prepare()


def count_pass(
    name: str, tokens: int, dim: int, dtype: torch.dtype, images: int = 1, run: bool = True
) -> dict:
    """Count one pass of `PASSES` on ViT-like features, with all steps of the scope loop.

    Args:
        name: name of the pass.
        tokens: number of tokens of an image.
        dim: number of features of a token.
        dtype: dtype of the features.
        images: number of images of the batch; the counts are per image.
        run: flag: run the kernels. Without it only launches, programs, the build and the bytes of
            the tensors are counted.

    Returns:
        dict with "kernels", a `KernelCount` as a dictionary by name, and "torch_kernels", the
        number of launches of torch itself.

    Raises:
        RuntimeError: the emulator found a fault.
    """
    from ptxemu import driver
    from ptxemu.engine import options_of
    from setok_kernels import testing

    counted = PASSES[name]
    # Equal images: others would have other peaks and other edges.
    x = testing.vit_like_tokens(1, tokens, dim).to(dtype).repeat(images, 1, 1)
    sources, reached = [], []
    with (
        driver.emulated(ARCH, options_of("checks=0")) as emulator,
        distance_rows(counted.streaming),
    ):
        emulator.only_launch = not run
        call = counted.prepare(x)
        faults = [str(f) for f in emulator.findings if not f.is_note]
        emulator.clear()
        emulator.edit = lambda ptx: sources.append(ptx) or ptx
        emulator.on_launch = lambda kernel, grid, result, memories, scalars: reached.append(
            sum(end - begin for m in memories for begin, end in _union(m.spans))
        )
        with counting_torch() as others:
            call()
        faults += [str(f) for f in emulator.findings if not f.is_note]
        records = emulator.records
    if faults:
        raise RuntimeError(f"kernel counts: the emulator found {faults[0]}")
    kernels = defaultdict(KernelCount)
    for record, ptx, size in zip(records, sources, reached, strict=True):
        add_launch(kernels[record.kernel.removesuffix("_kernel")], record, ptx, size)
    for found in kernels.values():
        for field_name in GROWING:
            # Launches do not scale with the images, and a warp's chain does not depend on them.
            if field_name != "launches" and not field_name.startswith(("chain", "longest")):
                setattr(found, field_name, getattr(found, field_name) / images)
    return {
        "torch_kernels": others.launches,
        "kernels": {kernel: asdict(found) for kernel, found in kernels.items()},
    }


def _union(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def add_launch(found: KernelCount, record, ptx: str, reached: int) -> None:
    """Add one launch of the emulator to the counts of its kernel."""
    from setok_bench.assembler import occupancy
    from setok_bench.sass import assemble, block_counts, chain, class_counts, latency_of

    run, program = record.run, record.run.program
    programs = int(record.grid[0] * record.grid[1] * record.grid[2])
    warps = programs * record.num_warps
    machine_code = assemble_once(ptx, assemble)
    blocks = machine_code.blocks
    counts = block_counts(blocks, by_line(program, run.executed))
    longest = block_counts(blocks, by_line(program, run.longest))
    classes = class_counts(blocks, counts)
    built = machine_code.resources
    found.launches += 1
    found.programs += programs
    found.num_warps = record.num_warps
    found.registers = max(found.registers, built["registers"])
    found.spills = max(found.spills, built["spills"] + built["stack"])
    found.shared = max(found.shared, record.shared)
    fit = occupancy(ARCH, 32 * record.num_warps, built["registers"], record.shared)
    found.fit = min(found.fit or fit, fit)
    found.ptx += int(run.executed.sum())
    for name in ("issue", "shuffle", "special", "barrier", "fp64"):
        setattr(found, name, getattr(found, name) + classes[name])
    traffic = memory_traffic(program, run)
    found.shared_bytes += traffic["shared"]
    found.read_bytes += traffic["read"]
    found.kept_bytes += traffic["kept"]
    found.first_bytes += min(traffic["kept"], SECTOR * run.first_sectors)
    found.longest_first_bytes += SECTOR * run.longest_first_sectors
    found.written_bytes += traffic["written"]
    found.reached_bytes += reached
    found.flops += traffic["flops"]
    for name, of_warps, number in (
        ("chain", counts, warps),
        ("longest", longest, record.num_warps),
    ):
        a_warp = [count / number for count in of_warps]
        for loads in _NEAREST:
            clocks = chain(blocks, a_warp, latency_of(H200.latency, loads))
            setattr(found, f"{name}_{loads}", getattr(found, f"{name}_{loads}") + clocks)
    found.loops = found.loops or main_loops(record)


def by_line(program, executed) -> dict[int, float]:
    """Return the executions by line of PTX, the maximum of its instructions."""
    found: dict[int, float] = {}
    for line, count in zip(program.ptx_line, executed.tolist(), strict=True):
        found[line] = max(found.get(line, 0), count)
    return found


_ASSEMBLED: dict[str, object] = {}


def assemble_once(ptx: str, assemble):
    """Return the machine code, assembled once for each kernel."""
    if ptx not in _ASSEMBLED:
        _ASSEMBLED[ptx] = assemble(ptx, ARCH)
    return _ASSEMBLED[ptx]


def memory_traffic(program, run) -> Counter:
    """Return bytes "read" and "written" through L2, bytes through L1 or "shared", and "flops".

    Bytes "kept" are those of "read" by loads that L1 keeps: not of `ld.global.cg`, `.cs` or
    `.L1::no_allocate`, of `cp.async.cg`, and of descriptor copies.

    Consecutive loads of parts of a sector hit L1 from the second on, so plain loads read no more
    from L2 than their lanes take. Flops are in units of 16-bit products: tf32, at half their rate,
    counts twice.
    """
    from ptxemu.build import opcodes
    from ptxemu.ptx_memory import PAST_L1

    names = {number: name for name, number in opcodes().items()}
    found = Counter()
    numbers = (run.executed.tolist(), run.lanes.tolist(), run.cost.tolist())
    for row, text, count, lanes, passes in zip(program.code, program.text, *numbers, strict=True):
        name = names[int(row[0])]
        if name == "LD_GLOBAL":
            read = min(SECTOR * passes, lanes * bytes_of(text))
            found["read"] += read
            found["kept"] += 0 if int(row[_IMM]) & PAST_L1 else read
            found["shared"] += SECTOR * passes
        elif name in ("CP_ASYNC", "BULK_LOAD"):
            found["read"] += SECTOR * passes
            found["kept"] += SECTOR * passes if name == "CP_ASYNC" and not row[_IMM2] else 0
            found["shared"] += SECTOR * passes
        elif name in ("ST_GLOBAL", "ATOM_GLOBAL", "BULK_STORE"):
            found["written"] += SECTOR * passes
            found["shared"] += SECTOR * passes
        elif name in ("LD_SHARED", "ST_SHARED", "LDMATRIX", "STMATRIX"):
            # 32 banks of 4 bytes.
            found["shared"] += 128 * passes
        elif name in ("MMA", "WGMMA") and (sizes := _PRODUCT.search(text)):
            m, n, k = map(int, sizes.groups())
            # Four warps execute one wgmma. It reads its operands from shared memory, the first one
            # unless it is in registers; a row of either has 32 bytes.
            warps = 4 if name == "WGMMA" else 1
            found["flops"] += (4 if "tf32" in text else 2) * m * n * k * count / warps
            if name == "WGMMA":
                rows_read = n + (m if text.count("{") < 2 else 0)
                found["shared"] += 32 * rows_read * count / warps
    return found


def bytes_of(text: str) -> int:
    """Return the bytes of a lane in a PTX load."""
    found = _WIDTH.search(text)
    return int(found["bits"]) // 8 * int(found["vector"] or 1)


def main_loops(record) -> list[dict]:
    """Return the loops of a launch with at least two turns and a tenth of its instructions."""
    from ptxemu.counts import loops

    total, found = int(record.run.executed.sum()), []
    warps = record.grid[0] * record.grid[1] * record.grid[2] * record.num_warps
    for loop in loops(record):
        turns, size = loop["iterations_per_warp"], loop["instructions_per_iteration"]
        if turns >= 2 and turns * warps * size >= 0.1 * total:
            held = loop["per_iteration"]
            found.append(
                {
                    "where": loop["source"].split(" ")[0],
                    "turns": round(turns, 2),
                    "instructions": round(size, 1),
                    "shuffles": round(held.get("shfl", 0) + held.get("redux", 0), 1),
                    "barriers": round(held.get("bar", 0), 2),
                }
            )
    return found


# Counts that the tests guard, and their tolerated relative growth over the committed counts.
WATCHED = ("launches", "issue", "shuffle", "barrier", "shared_bytes", "read_bytes")
WATCHED += ("written_bytes", "longest_l2")
TOLERATED = 0.1


def grown(counted: dict, committed: dict) -> list[str]:
    """Return a line for each kernel and count of `WATCHED` that grew by more than `TOLERATED`."""
    lines = []
    for name, found in counted["kernels"].items():
        before = committed["kernels"].get(name)
        if before is None:
            lines.append(f"{name}: {found['issue']:.0f} instructions, and no such kernel before")
            continue
        lines += [
            f"{name}: {field} {found[field]:g}, {before[field]:g} before"
            for field in WATCHED
            if found[field] > (1 + TOLERATED) * before[field]
        ]
    if counted["torch_kernels"] > committed["torch_kernels"]:
        lines.append(
            f"torch: {counted['torch_kernels']} launches, {committed['torch_kernels']} before"
        )
    return lines


def count_case(
    name: str, tokens: int, dim: int, dtype: torch.dtype, images: int = 1, run: bool = True
) -> dict:
    """Return a case of the committed counts: its pass, its shape, its origin, and the counts."""
    kind = str(dtype).removeprefix("torch.")
    shape = {"tokens": tokens, "features": dim, "k": K, "clusters": CLUSTERS, "dtype": kind}
    how = "counted" if run else "launched, not run"
    counts = count_pass(name, tokens, dim, dtype, images, run)
    return {"pass": name, "shape": shape, "how": how, **counts}


def rounded(value):
    """Round to six significant digits, for readable diffs of the file."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        short = float(f"{value:.6g}")
        return int(short) if short.is_integer() else short
    return value


def usual_cases(name: str, shapes: list[str] | None, dtypes: list[str] | None) -> list[tuple]:
    """Return (dtype, (tokens, features), flag: run) of each case of a pass."""
    if shapes:
        sizes = [tuple(map(int, shape.split("x"))) for shape in shapes]
        return [(dtype, size, True) for dtype in dtypes or ["bfloat16"] for size in sizes]
    found = [(*case, True) for case in PASSES[name].shapes]
    found += [(*case, False) for case in PASSES[name].launched]
    return [case for case in found if dtypes is None or case[0] in dtypes]


def main() -> int:
    """Count, and write or print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pass", nargs="+", choices=PASSES, default=list(PASSES), dest="passes")
    parser.add_argument("--shapes", nargs="+", metavar="NxD", help="in place of the usual ones")
    parser.add_argument("--dtypes", nargs="+", help="in place of the usual ones")
    parser.add_argument(
        "--checkout",
        type=Path,
        default=EMULATOR.parent,
        metavar="DIR",
        help="checkout with the kernels to count, e.g. a worktree of an earlier commit",
    )
    parser.add_argument("--gate", action="store_true", help="count only the cases of the tests")
    parser.add_argument("--out", type=Path, metavar="FILE", help="in place of the terminal")
    args = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    torch.set_num_threads(1)
    if args.checkout != EMULATOR.parent:
        sys.path[:0] = [str(args.checkout), str(args.checkout / "triton")]
    try:
        find_emulator()
    except RuntimeError as error:
        parser.error(str(error))
    from setok_bench.provenance import source

    def case(name, size, dtype, **options):
        begin = time.monotonic()
        found = count_case(name, *size, getattr(torch, dtype), **options)
        took = time.monotonic() - begin
        print(f"{name} {dtype} {size[0]}x{size[1]}: {took:.0f} s", file=sys.stderr, flush=True)
        return found

    result = {"schema": SCHEMA, **source(args.checkout), "arch": ARCH}
    result["gates"] = [case(name, GATE, "bfloat16") for name in args.passes]
    if args.gate:
        result["gates_of_three"] = [
            case(name, GATE, "bfloat16", images=3) for name in args.passes if name in BATCHES
        ]
    result["cases"] = [
        case(name, size, dtype, run=run)
        for name in ([] if args.gate else args.passes)
        for dtype, size, run in usual_cases(name, args.shapes, args.dtypes)
    ]
    text = json.dumps(rounded(result), indent=1) + "\n"
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
