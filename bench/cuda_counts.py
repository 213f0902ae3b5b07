"""Count the CUDA kernel of csrc/cuda beside the Triton kernel that it replaces, without a GPU.

    python bench/cuda_counts.py --shape 64x729x1152

nvcc compiles the kernel, the emulator of tests/ptxemu counts it, and `roofline.py` predicts its
time. Counts are for one image.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import re
from unittest import mock

import torch

from setok_bench.kernel_counts import count_pass, find_emulator
from setok_bench.machine import MACHINES
from setok_bench.roofline import predict
from setok_bench.work import Shape

REPLACED = "image_fwd"
FIELDS = ("num_warps", "registers", "spills", "shared", "issue", "shuffle", "special", "barrier")


def count_both(tokens: int, dim: int) -> dict[str, dict]:
    """Return the counts of the Triton kernel and of the CUDA kernel, by name."""
    driver, nvcc = map(importlib.import_module, ("ptxemu.driver", "ptxemu.nvcc"))
    plain = driver.emulated

    def older(ptx: str) -> str:
        # Triton's assembler is older than nvcc; the kernels use nothing newer than PTX 7.0.
        return re.sub(r"(?m)^\.version .*", ".version 8.0", ptx)

    @contextlib.contextmanager
    def emulated(*arguments):
        with plain(*arguments) as emulator, nvcc.in_place_of_triton(emulator, older):
            yield emulator

    found = count_pass("forward", tokens, dim, torch.bfloat16)["kernels"]
    with mock.patch.object(driver, "emulated", emulated):
        found |= count_pass("forward", tokens, dim, torch.bfloat16)["kernels"]
    return {n: c for n, c in found.items() if n == REPLACED or n.startswith("scope_fwd_kernel")}


def main() -> None:
    """Print the counts, and the predicted times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=Shape.parse, default="64x729x1152", metavar="BxNxD")
    parser.add_argument("--device", choices=MACHINES, default="H200")
    args = parser.parse_args()
    torch.set_num_threads(1)
    find_emulator()
    for name, count in count_both(args.shape.tokens, args.shape.features).items():
        print(f"{name}: " + ", ".join(f"{field} {count[field]:.0f}" for field in FIELDS))
        for loop in count["loops"]:
            print(
                f"  loop of {loop['turns']:g} turns: {loop['instructions']:g} PTX instructions, "
                f"{loop['shuffles']:g} shuffles, {loop['barriers']:g} barriers a turn"
            )
        found = predict(name, count, args.shape.images, MACHINES[args.device])
        print(
            f"  {args.shape.images} images: {found.expected * 1e6:.1f} us, bound by {found.bound}"
        )
        near = ", ".join(f"{n} {s * 1e6:.1f}" for n, s in found.parts.items() if s > 1e-6)
        print(f"  us by resource: {near}")


if __name__ == "__main__":
    main()
