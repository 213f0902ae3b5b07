"""Kernels that only measure, and how the counters of ncu are read.

python -m setok_bench.probes 64x729x1152    # one forward pass, for ncu to look at
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from unittest import mock

import torch
import triton
import triton.language as tl
from torch import Tensor

import setok_kernels as sk
from setok_bench.provenance import output
from setok_bench.registry import Case, Unavailable
from setok_bench.timing import Call
from setok_bench.work import Shape

NCU_METRICS = (
    "gpu__time_duration.sum",
    "smsp__inst_executed.sum",
    "lts__t_sectors_op_read.sum",
    "lts__t_sectors_op_write.sum",
    "dram__bytes.sum",
    "launch__registers_per_thread",
)
# Folders of sources that were made; the compiler reads them as long as the process lives.
_MADE: list[tempfile.TemporaryDirectory] = []


@triton.jit
def read_again_kernel(p_source, p_sum, size, turns, BLOCK: tl.constexpr):
    """Each program reads its part of the source, and in the next turn that of the program after."""
    programs = tl.num_programs(0)
    part = size // programs
    b_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    for turn in range(turns):
        first = ((tl.program_id(0) + turn) % programs) * part
        for i in range(0, part, BLOCK):
            o = i + tl.arange(0, BLOCK)
            # Not through L1, where the next turn could find it.
            b_sum += tl.load(p_source + first + o, mask=o < part, other=0.0, cache_modifier=".cg")
    tl.store(p_sum + tl.program_id(0), tl.sum(b_sum, axis=0))


def read_again(source: Tensor, sums: Tensor, turns: int) -> None:
    """Reads a buffer so many times; the sum of what each program read goes to `sums`.

    Args:
        source: float32, of a multiple of the number of programs.
        sums: written; one float32 for each program.
        turns: how often all of it is read.
    """
    read_again_kernel[(len(sums),)](source, sums, len(source), turns, BLOCK=1024, num_warps=8)


class _Vary(ast.NodeTransformer):
    """Takes the stores of a kernel out: those of the minima, or has none of the others happen."""

    def __init__(self, minima: bool, stores: bool):
        self.minima, self.stores = minima, stores
        self.of_minima: set[str] = set()
        self.size = None
        self.dropped = self.guarded = 0

    def visit_FunctionDef(self, node):
        names = [a.arg for a in node.args.args]
        # A run-time number that is never negative, which the compiler does not know.
        self.size = "L" if "L" in names else None
        self.of_minima = set()
        self.generic_visit(node)
        return node

    def visit_Assign(self, node):
        if self._touches_minima(node.value):
            self.of_minima |= {n.id for n in node.targets if isinstance(n, ast.Name)}
        return node

    def visit_Expr(self, node):
        call = node.value
        is_store = isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "store"
        if not is_store:
            return node
        target = call.args[0] if getattr(call.func.value, "id", "") == "tl" else call.func.value
        if self._touches_minima(target):
            if self.minima:
                return node
            self.dropped += 1
            return ast.Pass()
        if self.stores:
            return node
        if self.size is None:
            raise ValueError("tile variants: expected a kernel with the argument L, got none")
        self.guarded += 1
        test = ast.Compare(ast.Name(self.size, ast.Load()), [ast.Lt()], [ast.Constant(0)])
        return ast.If(test, [node], [])

    def _touches_minima(self, expression) -> bool:
        return any(
            re.fullmatch(r"(p_)?least", getattr(n, "attr", getattr(n, "id", "")))
            or getattr(n, "id", None) in self.of_minima
            for n in ast.walk(expression)
        )


def varied(module, minima: bool, stores: bool):
    """A copy of a module of kernels without the stores of minima, or without any that happens.

    Raises:
        ValueError: there is nothing in it to leave out.
    """
    change = _Vary(minima, stores)
    tree = ast.fix_missing_locations(change.visit(ast.parse(Path(module.__file__).read_text())))
    for wanted, found, what in (
        (not minima, change.dropped, "minima"),
        (not stores, change.guarded, "other results"),
    ):
        if wanted and not found:
            raise ValueError(f"tile variants: expected stores of {what} in {module.__name__}")
    _MADE.append(tempfile.TemporaryDirectory())
    name = f"{module.__name__.rpartition('.')[2]}_{len(_MADE)}"
    file = Path(_MADE[-1].name, f"{name}.py")
    file.write_text(ast.unparse(tree))
    spec = importlib.util.spec_from_file_location(f"setok_bench.{name}", file)
    made = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up.
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


def tile_variants(x: Tensor, config: sk.ClusterConfig) -> dict[str, Call]:
    """Calls of the kernel of the distances: "whole", "no_minima" and "product", without stores."""
    from setok_triton import backend
    from setok_triton import distances as module

    given = []
    plain = backend.distances

    def keep(*args, **kwargs):
        given.append((args, kwargs))
        return plain(*args, **kwargs)

    with mock.patch.object(backend, "distances", keep):
        sk.cluster_tokens(x, config, backend="triton")
    args, kwargs = given[0]
    made = {
        "whole": module,
        "no_minima": varied(module, minima=False, stores=True),
        "product": varied(module, minima=False, stores=False),
    }
    calls = {name: lambda m=m: m.distances(*args, **kwargs) for name, m in made.items()}
    for call in calls.values():
        # Compiled before anything is captured or timed.
        call()
    return calls


def clock() -> float:
    """Clocks per second that the device's multiprocessors may reach.

    Raises:
        Unavailable: the driver does not say.
    """
    query = ("--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits")
    said = output("nvidia-smi", *query)
    if not said:
        raise Unavailable("nvidia-smi does not say the clock")
    return 1e6 * float(said.splitlines()[0])


def ncu_rows(text: str) -> dict[str, dict[str, float]]:
    """Counters by kernel of what `ncu --csv` printed, summed over its launches.

    Raises:
        RuntimeError: it printed none.
    """
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if begin is None:
        raise RuntimeError(f"ncu: expected a table, got {text[-500:]!r}")
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in csv.DictReader(lines[begin:]):
        kernel = row["Kernel Name"].partition("(")[0].removesuffix("_kernel")
        value = float(row["Metric Value"].replace(",", ""))
        name = f"{row['Metric Name']} {row['Metric Unit']}".strip()
        if row["Metric Name"].startswith("launch__"):
            found[kernel][name] = value
        else:
            found[kernel][name] += value
    return {kernel: dict(values) for kernel, values in found.items()}


def main() -> int:
    """One forward pass at the shape of the command line."""
    case = Case(Shape.parse(sys.argv[1]), torch.device("cuda"))
    sk.cluster_tokens(case.tokens(), case.config, backend="triton")
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
