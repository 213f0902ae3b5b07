"""Peak memory and time of clustering very many tokens, in a process of its own.

Peak memory is the growth of the largest resident set over that of a small call, less what the
result itself holds. Time is compared with the product of all pairs of tokens, made in strips so
that it needs no more memory.

    python bench/memory.py --tokens 16384 --features 1152
"""

import argparse
import resource
import statistics
import sys
import time

import torch

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


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--features", type=int, default=1152)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--backward", action="store_true", help="with the gradient of the tokens")
    args = parser.parse_args()

    config = sk.ClusterConfig(stop_residual=0.0)
    shape = (args.images, args.tokens, args.features)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x.requires_grad_(args.backward)

    def run(x):
        out = sk.cluster_tokens(x, config, backend=args.backend)
        if args.backward:
            # A gradient of the masks without memory of its own, as a sum gives it.
            x.grad = torch.autograd.grad(out.masks, x, torch.ones(()).expand_as(out.masks))[0]
        return out

    run(x.detach()[:, :64].clone().requires_grad_(args.backward))
    before = peak_mib()
    out = run(x)
    grown = peak_mib() - before
    tensors = [
        out.masks,
        out.labels,
        out.density,
        out.delta,
        out.score,
        *vars(out.decisions).values(),
    ]
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
    what = "forward and backward" if args.backward else "cluster_tokens"
    print(f"{what} {ours:.2f} s, product {product:.2f} s, ratio {ours / product:.2f}")


if __name__ == "__main__":
    main()
