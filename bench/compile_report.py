"""Compile every Triton kernel as it would be launched, without a GPU, and report its resources.

The launchers run on fake tensors, so no launch may depend on data. Each launch is recorded, not
executed, compiled for the targets, and assembled by ptxas for its resources.

    python bench/compile_report.py --targets 80 90 --out bench_out/compile.json
"""

import argparse
import dataclasses
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature
from triton.tools.tensor_descriptor import TensorDescriptor

import setok_kernels as sk
from setok_bench.assembler import occupancy, resources, run_ptxas
from setok_kernels.compiled import Compiled
from setok_kernels.config import DPCOptions
from setok_kernels.saved import saved_bytes


@dataclass(frozen=True)
class Launch:
    """Specialisation of a launch; equal launches compile to the same machine code.

    Attributes:
        kernel: kernel to compile.
        name: name of the kernel.
        signature: types by parameter; those of a bundle are a bundle of types.
        constants: values by name, as in ("BLOCK_N", 128) and ("x.stride_d", 1).
        constant_paths: path of each constant: the parameter, and the index in a bundle.
        multiples_of_16: paths of integers and addresses divisible by 16.
        options: compiler options, as in ("num_warps", 4).
    """

    kernel: JITFunction = field(compare=False)
    name: str
    signature: tuple
    constants: tuple
    constant_paths: tuple
    multiples_of_16: tuple
    options: tuple

    @property
    def num_warps(self) -> int:
        """Number of warps of a program."""
        return dict(self.options)["num_warps"]


class Pointer:
    """Stand-in for a tensor without memory; its address has the alignment of the tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype, self.offset = tensor.dtype, tensor.storage_offset() * tensor.itemsize

    def data_ptr(self) -> int:
        """Return the address relative to the storage."""
        return self.offset


def pointers(value):
    """Return an argument of a launch with a `Pointer` for each tensor."""
    if isinstance(value, torch.Tensor):
        return Pointer(value)
    if isinstance(value, TensorDescriptor):
        return dataclasses.replace(value, base=Pointer(value.base))
    if isinstance(value, tuple):
        inner = map(pointers, value)
        return type(value)(*inner) if hasattr(value, "_fields") else tuple(inner)
    return value


def describe(kernel: JITFunction, args: tuple, kwargs: dict) -> Launch:
    """Return the specialisation that Triton's launcher would choose."""
    # The specialisation does not depend on the GPU.
    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*pointers(args), **kwargs)
    _, signature, constants, attributes = kernel._pack_args(
        backend, dict(kwargs), bound, specialization, None
    )

    def name(path):
        first, *rest = path
        names, types = [kernel.arg_names[first]], signature[kernel.arg_names[first]]
        for index in rest:
            names.append(types._fields[index])
            types = types[index]
        return ".".join(names)

    return Launch(
        kernel,
        kernel.fn.__name__,
        tuple(signature.items()),
        tuple((name(path), value) for path, value in constants.items()),
        tuple(constants),
        tuple(path for path, attribute in attributes.items() if attribute),
        tuple(sorted({"num_warps": 4, **options}.items())),
    )


def record_launches(call) -> list[Launch]:
    """Record the launches of `call` without executing them."""
    seen = {}

    def run(self, *args, grid, warmup, **kwargs):
        assert all(isinstance(size, int) for size in grid), "a grid that depends on data"
        launch = describe(self, args, kwargs)
        seen.setdefault(launch, launch)

    plain = JITFunction.run
    JITFunction.run = run
    try:
        call()
    finally:
        JITFunction.run = plain
    return list(seen)


class Kernels(Compiled):
    """Triton kernels without their operations, whose fake kernels would catch fake tensors."""

    @property
    def _ops(self):
        from setok_triton import backend

        return backend


def launches(
    dtype: torch.dtype, tokens: int, dim: int, k: int = 8, images: int = 4, clusters: int = 64
) -> list[Launch]:
    """Return the launches of every operation on a padded, masked batch of `tokens` tokens."""
    triton_ops = Kernels("triton")
    with FakeTensorMode():
        x = torch.empty(images, tokens, dim, dtype=dtype)
        mask = torch.empty(images, tokens, dtype=torch.bool)
        config = sk.ClusterConfig(k=k, max_clusters=clusters)
        weights = torch.empty(images, tokens)
        noise = torch.empty(images, tokens)
        budget = torch.empty(images, dtype=torch.int64)

        def call():
            out = triton_ops.cluster(x, mask, None, None, config, None)
            d, ops, lengths = out.decisions, triton_ops._ops, (None, tokens)
            values = (out.masks, out.density, out.delta, out.score)
            kept = torch.empty(saved_bytes(images * tokens, images), dtype=torch.uint8)
            for importance, saved in ((None, kept), (weights, None)):
                ops.cluster_backward(
                    *(x, mask, importance, *lengths, d.knn, d.parent, d.seeds, d.counts),
                    *(*values, *values, saved, None, 0, 0, 0.5, 0.1, 0.1, 0.5, 0, 0.0, True),
                )
            # At most and exactly as many clusters as the budget.
            for exact in (False, True):
                triton_ops.cluster(x, mask, None, None, config, None, weights, budget, exact)
            for mode in ("hard", "soft"):
                merged = triton_ops.merge(x, out, mode, weights, 1e-6)
                triton_ops.unmerge(merged, out, mode)
                soft = mode == "soft"
                assignment = (out.masks if soft else None, out.labels, out.counts)
                ops.merge_backward(merged, x, *assignment, weights, *lengths, 1e-6, soft)
                ops.unmerge_backward(x, merged, *assignment, *lengths, soft)
            for given, importance, cap in (
                (None, None, "diameter"),
                (noise, None, "eccentricity"),
                (None, weights, "diameter"),
            ):
                options = DPCOptions(k, num_clusters=20, cap=cap)
                triton_ops.dpc_knn(x, mask, None, None, given, options, importance)
            triton_ops.threshold_greedy(x, mask, None, None, 0.5)

        return record_launches(call)


def compile_launch(launch: Launch, capability: int) -> dict:
    """Compile one launch for one target, and return its resources and instructions."""
    kernel = launch.kernel
    values = [value for _, value in launch.constants]
    source = ASTSource(
        fn=kernel,
        signature=dict(launch.signature),
        constexprs=dict(zip(launch.constant_paths, values, strict=True)),
        attrs={path: [["tt.divisibility", 16]] for path in launch.multiples_of_16},
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=dict(launch.options))
    ptx = compiled.asm["ptx"]
    threads, shared = 32 * launch.num_warps, compiled.metadata.shared
    built = resources(run_ptxas(ptx, capability))
    return {
        "kernel": launch.name,
        "sm": capability,
        "constants": {k: v for k, v in launch.constants if k.isupper()},
        "num_warps": launch.num_warps,
        **built,
        "shared": shared,
        "programs_per_multiprocessor": occupancy(capability, threads, built["registers"], shared),
        "tensor_cores": tensor_cores(ptx),
        "loads_of_2_bytes": len(re.findall(r"\bld\.global\S*\.b16\b", ptx)),
    }


def tensor_cores(ptx: str) -> str | None:
    """Return the kind of tensor-core instruction in the code, if any."""
    kinds = {"wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma", "mma": "mma.sync"}
    return next((kind for kind, text in kinds.items() if text in ptx), None)


def format_rows(rows: list[dict]) -> str:
    """Return the text of a report: a JSON list with one row on each line."""
    return "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"


def main() -> None:
    """Compile, print a table and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", type=int, default=[80, 90])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16", "float32"])
    parser.add_argument("--precisions", nargs="+", default=["highest", "high", "medium"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[729, 16384])
    parser.add_argument("--dim", type=int, default=1152)
    parser.add_argument("--k", nargs="+", type=int, default=[8])
    parser.add_argument("--out", type=Path, help="JSON file for the report")
    args = parser.parse_args()

    jobs = {}
    for dtype in args.dtypes:
        for precision in args.precisions if dtype == "float32" else ["highest"]:
            torch.set_float32_matmul_precision(precision)
            for tokens in args.tokens:
                for k in args.k:
                    for launch in launches(getattr(torch, dtype), tokens, args.dim, k):
                        for target in args.targets:
                            jobs.setdefault((launch, target), (dtype, tokens, k))

    def work(item):
        (launch, target), (dtype, tokens, k) = item
        return {"dtype": dtype, "tokens": tokens, "k": k} | compile_launch(launch, target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(work, jobs.items()))
    print(
        f"{'kernel':24} {'dtype':9} {'N':>6} {'sm':>4} {'regs':>5} {'spill':>6} {'shared':>7} "
        f"{'fit':>4}  tensor cores"
    )
    for r in rows:
        print(
            f"{r['kernel'].removesuffix('_kernel'):24} {r['dtype']:9} {r['tokens']:6} {r['sm']:4} "
            f"{r['registers']:5} {r['spills'] + r['stack']:6} {r['shared']:7} "
            f"{r['programs_per_multiprocessor']:4}  {r['tensor_cores'] or ''}"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(format_rows(rows))


if __name__ == "__main__":
    main()
