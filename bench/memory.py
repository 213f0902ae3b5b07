"""Peak memory and time of clustering very many tokens, in a process of its own.

A drop-in or, from a copy of its source, the function of another project (`--peer`) is measured the
same way.

Peak memory is the growth of the largest resident set over that of a small call, less what the
result itself holds. Time is compared with the product of all pairs of tokens, made in strips so
that it needs no more memory.

    python bench/memory.py --tokens 16384 --features 1152
    python bench/memory.py --drop-in tcformer
    python bench/memory.py --peer tcformer=TCFormer/tcformer_module/tcformer_utils.py
"""

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from peers import PAIRS, Case, load_functions

import setok_kernels as sk

STRIP = 1024


def peak_mib() -> float:
    """Largest resident set of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def product_in_strips(x: torch.Tensor) -> None:
    """Inner products of all rows of (N, D), a strip of rows at a time."""
    for strip in x.split(STRIP):
        strip @ x.mT


def seconds(call) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def hard_clustering(drop_in: str | None, peer: str | None):
    """One side of a pair of `peers.py`: x to a tuple of tensors, for k = 8 and 64 clusters."""
    name, _, path = (peer or drop_in).partition("=")
    make, ours, _, _ = PAIRS[name]
    pair = make(load_functions(name, Path(path)) if peer else {}, ours)
    call = pair[0] if peer else pair[1]
    return lambda x: call(Case(x, 8, 64, 0.5, None, 0), x.dtype)


def tensors_of(out) -> list[torch.Tensor]:
    """What the result holds."""
    if isinstance(out, tuple):
        return list(out)
    values = [out.masks, out.labels, out.density, out.delta, out.score]
    return [*values, *vars(out.decisions).values()]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--features", type=int, default=1152)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--backward", action="store_true", help="with the gradient of the tokens")
    parser.add_argument("--drop-in", choices=PAIRS, help="instead of cluster_tokens")
    parser.add_argument("--peer", metavar="NAME=FILE", help="likewise, a copy of its source")
    args = parser.parse_args()
    hard = args.drop_in or args.peer

    config = sk.ClusterConfig(stop_residual=0.0)
    shape = (args.images, args.tokens, args.features)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x.requires_grad_(args.backward)

    def run(x):
        if hard:
            return hard_clustering(args.drop_in, args.peer)(x)
        out = sk.cluster_tokens(x, config, backend=args.backend)
        if args.backward:
            # A gradient of the masks without memory of its own, as a sum gives it.
            x.grad = torch.autograd.grad(out.masks, x, torch.ones(()).expand_as(out.masks))[0]
        return out

    run(x.detach()[:, :128].clone().requires_grad_(args.backward))
    before = peak_mib()
    out = run(x)
    grown = peak_mib() - before
    tensors = tensors_of(out)
    if args.backward:
        tensors.append(x.grad)
    held = sum(t.numel() * t.element_size() for t in tensors) / 2**20
    print(f"{args.tokens} tokens, {args.features} features, {torch.get_num_threads()} threads")
    print(f"input {x.numel() * 4 / 2**20:.0f} MiB, result {held:.1f} MiB")
    print(f"peak grew by {grown:.1f} MiB, {grown - held:.1f} MiB beyond the result")
    ours, product = [], []
    for _ in range(args.repeats):
        ours.append(seconds(lambda: run(x)))
        product.append(seconds(lambda: [product_in_strips(image) for image in x.detach()]))
    ours, product = statistics.median(ours), statistics.median(product)
    what = args.peer or args.drop_in or "cluster_tokens"
    if args.backward:
        what = "forward and backward"
    print(f"{what} {ours:.2f} s, product {product:.2f} s, ratio {ours / product:.2f}")


if __name__ == "__main__":
    main()
