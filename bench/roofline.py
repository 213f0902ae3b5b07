"""Bytes, flops and the least possible time of every Triton kernel, for a shape and a GPU.

The floor is that of `work.py`. Rows of distances that stay in the L2 cache are not counted.

    python bench/roofline.py --shapes 64x729x1152 1x16384x1152 --device H200
"""

import argparse

import torch

from setok_bench.work import Rates, Shape, Work, product
from setok_kernels.compiled import DENSE_LIMITS
from setok_triton import configs

# A step: a row from L2, three reductions over the program, two exponentials; an estimate.
DEVICES = {
    "H200": Rates(copy=4.3e12, matmul=790e12, step=1.5e-6, measured=True),
    # The same chip with slower memory; its copy rate is 0.9 of the 3.35 TB/s it is sold with.
    "H100": Rates(copy=3.0e12, matmul=790e12, step=1.5e-6, measured=False),
}


L2_BYTES = 50e6


def is_dense(shape: Shape) -> bool:
    """Whether rows of distances are kept."""
    return shape.tokens <= DENSE_LIMITS["triton"]


def kernels(shape: Shape) -> dict[str, Work]:
    """The work of every kernel of one forward pass."""
    tile = configs.tile_config(shape.dtype)
    total, dim = shape.images * shape.tokens, shape.features
    x, knn, masks = (
        total * dim * shape.dtype.itemsize,
        8 * total * shape.k,
        4 * total * (shape.clusters + 1),
    )

    rows = 4 * shape.images * shape.tokens**2
    rows = rows if rows > L2_BYTES else 0

    def blocks(size):
        return -(-shape.tokens // size)

    side = blocks(tile.block_m)
    work = {
        "token_state": Work(x + total),
        "variance": Work(x + total),
        "norms": Work(
            x + 4 * total, 2 * shape.images * blocks(tile.block_m) * tile.block_m**2 * dim
        ),
    }
    if is_dense(shape):
        triangle = side * (side + 1) // 2
        flops = 2 * shape.images * triangle * tile.block_m**2 * dim
        # Square tiles of 64 use a feature 64 times: the loads, not the tensor cores, set the pace.
        minima = 4 * total * -(-shape.tokens // configs.GROUP)
        work["distances"] = Work(x + rows + minima, flops, expected=2.0)
        # Of a row its minima and K groups; 550 instructions of a warp, not bytes, set the pace.
        candidates = 4 * configs.GROUP * shape.k * total
        work["select"] = Work(minima + candidates + knn + 4 * total, expected=3.5)
    else:
        area = side * tile.block_m * blocks(tile.block_n) * tile.block_n
        flops = 2 * shape.images * area * dim
        work["neighbours"] = Work(x + knn, flops, expected=2.0)
        work["parents"] = Work(x + 12 * total, flops, expected=1.7)
    if is_dense(shape):
        seeds = 4 * shape.clusters * total if rows else 0
        work["image"] = Work(seeds + masks + knn + 32 * total, steps=shape.clusters)
    else:
        work["density"] = Work(knn + 4 * total)
        work["delta"] = Work(12 * total, expected=4.0)
        work["score"] = Work(12 * total, expected=8.0)
        # The features are read again for every seed: rows of distances are not kept.
        work["scope_step"] = Work(
            shape.clusters * (x + 20 * total) + masks, steps=shape.clusters, expected=1.7
        )
        work["labels"] = Work(masks + 8 * total)
    return work


def merging(shape: Shape) -> dict[str, Work]:
    """The work of merging and unmerging by as many clusters as there may be, not in a forward."""
    total, dim, rows = shape.images * shape.tokens, shape.features, shape.clusters + 1
    x, out = (n * dim * shape.dtype.itemsize for n in (total, shape.images * rows))
    # bfloat16 tokens are multiplied with both halves of a float32 share.
    products = 2 if shape.dtype == torch.bfloat16 else 1
    flops, masks = products * 2 * rows * total * dim, 4 * rows * total
    return {
        "token_state": Work(x + total),
        "merge_soft": Work(x + masks + out, flops, expected=2.0),
        # Sorted labels, and their order; the largest cluster is walked by one program.
        "merge_hard": Work(x + 24 * total + out, expected=2.5),
        "unmerge_soft": Work(x + masks + out, flops, expected=2.0),
        "unmerge_hard": Work(x + 8 * total + out),
    }


def one_shot(shape: Shape) -> dict[str, Work]:
    """The work of `dpc_knn` that `kernels` has not, and of `threshold_greedy`, for C centres."""
    tile, total = configs.tile_config(shape.dtype), shape.images * shape.tokens
    x = total * shape.features * shape.dtype.itemsize
    blocks, edge = -(-shape.tokens // tile.block_m), tile.block_m
    triangle = blocks * (blocks + 1) // 2
    bits, row = 4 * total * -(-shape.tokens // 32), 4 * -(-shape.tokens // 32)
    labels = Work(
        x + 12 * total, 2 * total * 64 * -(-shape.clusters // 64) * shape.features, expected=2.0
    )
    # Square tiles, as for the distances; a bit for each pair goes out, not a number.
    flops = 2 * shape.images * triangle * edge**2 * shape.features
    claimed = shape.images * shape.clusters * row
    return {
        "peaks": Work(28 * total, expected=4.0),
        "assign": labels,
        "directions": Work(x + 9 * total, expected=1.7),
        "adjacency": Work(x + bits, flops, expected=2.0),
        "claim": Work(claimed + 4 * total, steps=shape.clusters, expected=2.0),
    }


def print_rows(work: dict[str, Work], device: Rates) -> None:
    """A line for each kernel."""
    for name, w in work.items():
        floor = w.floor(device) * 1e6
        print(
            f"{name:12} {w.bytes / 1e6:10.2f} {w.flops / 1e9:10.1f} {floor:10.1f} "
            f"{floor * w.expected:12.1f}"
        )


def main() -> None:
    """Prints a table for every shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shapes = ["1x729x1152", "64x729x1152", "8x2916x1152", "1x16384x1152"]
    parser.add_argument(
        "--shapes", nargs="+", type=Shape.parse, default=[*map(Shape.parse, shapes)]
    )
    parser.add_argument("--device", choices=DEVICES, default="H200")
    args = parser.parse_args()
    device = DEVICES[args.device]
    said = "measured" if device.measured else "estimated"
    print(
        f"{args.device}: {device.copy / 1e12:.1f} TB/s, {device.matmul / 1e12:.0f} TFLOP/s ({said})"
    )
    for shape in args.shapes:
        regime = "dense" if is_dense(shape) else "streaming"
        print(f"\n{shape.images} x {shape.tokens} x {shape.features}, {regime}")
        print(f"{'kernel':12} {'MB':>10} {'GFLOP':>10} {'floor us':>10} {'expected us':>12}")
        work = kernels(shape)
        print_rows(work, device)
        floor = sum(w.floor(device) for w in work.values()) * 1e6
        expected = sum(w.floor(device) * w.expected for w in work.values()) * 1e6
        bmm = product(shape).floor(device) * 1e6
        print(f"{'all':12} {'':21} {floor:10.1f} {expected:12.1f}")
        print(f"{'bmm':12} {'':21} {bmm:10.1f}   expected / floor of bmm {expected / bmm:.1f}")
        print("merging, beside it")
        print_rows(merging(shape), device)
        print("dpc_knn and threshold_greedy, beside it")
        print_rows(one_shot(shape), device)


if __name__ == "__main__":
    main()
