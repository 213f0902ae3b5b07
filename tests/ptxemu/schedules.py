"""Do results depend on the order in which programs and warps run?

    python -m ptxemu.schedules --arch 90 --seeds 4

Every operation runs on the emulator once for each seed of the schedule, forward and backward, with
kept rows and without. Exits 1 if any bit differs, or if anything is found.
"""

import argparse
import sys

from ptxemu import driver

driver.prepare()

import torch

import setok_kernels as sk
from ptxemu.engine import options_of
from setok_kernels import compiled, testing


def results(dense: bool) -> dict[str, torch.Tensor]:
    """Return results and gradients of all operations, on tokens with hubs and ties."""
    compiled.DENSE_LIMITS["triton"] = 2048 if dense else 0
    found = {}
    x, cu_seqlens, _, _ = testing.ragged_batch([150, 0, 37], 16)
    # Hubs and equal tokens: many edges to one token, many candidates at one distance.
    x[20:60] = x[20]
    x = x.bfloat16().requires_grad_()
    weights = torch.linspace(0.5, 2, len(x)).requires_grad_()
    images = dict(cu_seqlens=cu_seqlens, max_seqlen=150)
    config = sk.ClusterConfig(k=3, max_clusters=9, stop_residual=0.0)
    out = sk.cluster_tokens(x, config, importance=weights, backend="triton", **images)
    loss = out.density.sum() + out.delta.sum() + out.score.sum() + out.masks.square().sum()
    for mode in ("soft", "hard"):
        merged = sk.merge_tokens(x, out, mode, weights, backend="triton")
        spread = sk.unmerge_tokens(merged, out, mode, backend="triton")
        found |= {f"{mode} merge": merged, f"{mode} unmerge": spread}
        loss = loss + spread.float().square().sum()
    found["grad x"], found["grad importance"] = torch.autograd.grad(loss, (x, weights))
    for name in ("masks", "labels", "density", "delta", "score"):
        found[name] = getattr(out, name)
    for name in ("knn", "parent", "seeds", "counts"):
        found[name] = getattr(out.decisions, name)
    for cap in ("diameter", "eccentricity"):
        peaks = sk.dpc_knn(x.detach(), num_clusters=5, k=3, cap=cap, backend="triton", **images)
        found |= {f"{cap} labels": peaks.labels, f"{cap} score": peaks.score}
    found["greedy"] = sk.threshold_greedy(x.detach(), 0.5, backend="triton", **images).labels
    return {name: value.detach() for name, value in found.items()}


def main() -> int:
    """Compare the results of all seeds with those of the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, choices=(80, 90), default=90)
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()
    wrong = 0
    for dense in (True, False):
        first, regime = {}, "dense" if dense else "streaming"
        for seed in range(args.seeds):
            with driver.emulated(args.arch, options_of(f"seed={seed}")) as emulator:
                found = results(dense)
                faults = [str(f) for f in emulator.findings if not f.is_note]
            first = first or found
            other = [name for name in found if not torch.equal(found[name], first[name])]
            state = "BAD" if other or faults else "ok"
            print(f"{state} {regime}, seed {seed}: {len(found)} results", *other, flush=True)
            for fault in faults:
                print(f"       {fault}")
            wrong += bool(other or faults)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
