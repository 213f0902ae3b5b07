"""Measurement kernels, and parsing of ncu's counters.

python -m setok_bench.probes 64x729x1152    # one forward pass, to profile with ncu
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import re
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from types import MappingProxyType
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
# Folders of generated sources, which the compiler reads as long as the process lives.
_MADE: list[tempfile.TemporaryDirectory] = []


@triton.jit
def read_again_kernel(p_source, p_sum, size, turns, BLOCK: tl.constexpr):
    """Let each program read its part of the source, and in each turn the next program's part."""
    programs = tl.num_programs(0)
    part = size // programs
    b_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    for turn in range(turns):
        first = ((tl.program_id(0) + turn) % programs) * part
        for i in range(0, part, BLOCK):
            o = i + tl.arange(0, BLOCK)
            # Bypasses L1, which would serve the next turn. (BLOCK,)
            b_sum += tl.load(p_source + first + o, mask=o < part, other=0.0, cache_modifier=".cg")
    tl.store(p_sum + tl.program_id(0), tl.sum(b_sum, axis=0))


def read_again(source: Tensor, sums: Tensor, turns: int) -> None:
    """Read a buffer `turns` times, and write each program's sum into `sums`.

    Args:
        source: float32 vector, with a multiple of the number of programs as length.
        sums: output, one float32 for each program.
        turns: number of times to read the whole buffer.
    """
    read_again_kernel[(len(sums),)](source, sums, len(source), turns, BLOCK=1024, num_warps=8)


class _Vary(ast.NodeTransformer):
    """Transformer that removes stores from kernels: those of minima, and those of distance rows.

    The targets of the stores are tracked from the arguments `p_minima` and `p_distance`.
    """

    _ENDS = MappingProxyType({"minima": r"(p_)?minima", "rows": r"(p_)?distances?"})

    def __init__(self, minima: bool, rows: bool):
        self.keeps = {"minima": minima, "rows": rows}
        self.names: dict[str, set[str]] = {}
        self.has_size = False
        self.found = Counter()

    def visit_FunctionDef(self, node):
        self.has_size = "L" in [a.arg for a in node.args.args]
        self.names = {what: set() for what in self._ENDS}
        self.generic_visit(node)
        return node

    def visit_Assign(self, node):
        for what, names in self.names.items():
            if self._reaches(node.value, what):
                names |= {n.id for n in node.targets if isinstance(n, ast.Name)}
        return node

    def visit_Expr(self, node):
        call = node.value
        if not (isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "store"):
            return node
        # tl.store(pointer, …), or descriptor.store(…).
        target = call.args[0] if getattr(call.func.value, "id", "") == "tl" else call.func.value
        what = next((what for what in self._ENDS if self._reaches(target, what)), None)
        if what is None or self.keeps[what]:
            return node
        self.found[what] += 1
        if what == "minima":
            return ast.Pass()
        if not self.has_size:
            raise ValueError(
                "tile variants: expected an argument L in a kernel that stores rows, got none"
            )
        # Never true, but unknown to the compiler, which would remove a product without its store.
        test = ast.Compare(ast.Name("L", ast.Load()), [ast.Lt()], [ast.Constant(0)])
        return ast.If(test, [node], [])

    def _reaches(self, expression, what: str) -> bool:
        return any(
            re.fullmatch(self._ENDS[what], getattr(n, "attr", getattr(n, "id", "")))
            or getattr(n, "id", None) in self.names[what]
            for n in ast.walk(expression)
        )


def varied(module, minima: bool, rows: bool):
    """Return a copy of a kernel module without stores of minima, of rows, or of both.

    Raises:
        ValueError: the module has no such stores.
    """
    change = _Vary(minima, rows)
    tree = ast.fix_missing_locations(change.visit(ast.parse(Path(module.__file__).read_text())))
    for what, keeps in change.keeps.items():
        if not keeps and not change.found[what]:
            raise ValueError(f"tile variants: expected stores of {what} in {module.__name__}")
    _MADE.append(tempfile.TemporaryDirectory())
    name = f"{module.__name__.rpartition('.')[2]}_{len(_MADE)}"
    file = Path(_MADE[-1].name, f"{name}.py")
    file.write_text(ast.unparse(tree))
    spec = importlib.util.spec_from_file_location(f"setok_bench.{name}", file)
    made = importlib.util.module_from_spec(spec)
    # Dataclasses look up their module in sys.modules.
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


def tile_variants(x: Tensor, config: sk.ClusterConfig) -> dict[str, Call]:
    """Return calls of the distance kernels: "whole", "no_minima", and without rows "product".

    Each returns the `KeptRows` that it writes.
    """
    from setok_triton import backend
    from setok_triton import distances as module

    given = []
    plain = backend.distances

    def keep(*args, **kwargs):
        given.append((args, kwargs))
        return plain(*args, **kwargs)

    with mock.patch.object(backend, "distances", keep):
        sk.cluster_tokens(x, config, backend="triton")
    (x, valid, chunk, rows, *rest), kwargs = given[0]

    def variant(of):
        own = type(rows)(*(torch.empty_like(r) if isinstance(r, Tensor) else r for r in rows))

        def call():
            of.distances(x, valid, chunk, own, *rest, **kwargs)
            return own

        return call

    made = {
        "whole": module,
        "no_minima": varied(module, minima=False, rows=True),
        "product": varied(module, minima=False, rows=False),
    }
    calls = {name: variant(m) for name, m in made.items()}
    for call in calls.values():
        # Compile before capture and timing.
        call()
    return calls


def clock() -> float:
    """Return the maximum clock rate of the multiprocessors in Hz.

    Raises:
        Unavailable: nvidia-smi does not report it.
    """
    query = ("--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits")
    text = output("nvidia-smi", *query)
    if not text:
        raise Unavailable("nvidia-smi does not report the clock rate")
    return 1e6 * float(text.splitlines()[0])


def ncu_rows(text: str) -> dict[str, dict[str, float]]:
    """Parse the counters of each kernel from `ncu --csv`, summed over its launches.

    Raises:
        RuntimeError: the output has no table.
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
    """Run one forward pass at the shape of the command line."""
    case = Case(Shape.parse(sys.argv[1]), torch.device("cuda"))
    sk.cluster_tokens(case.tokens(), case.config, backend="triton")
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
