"""Compares the drop-ins of `setok_kernels.compat` with the functions they stand for.

The other projects' sources are not part of this one: clone those that are to be compared into one
folder. Only the functions named in `peers.py` are executed. Cases are drawn at random; both sides
get the same tokens and the same noise. Where float32 results differ, both sides run again in
float64: equal there means that a tie at rounding level parted them. The report says which side kept
the float64 result, and ours is judged: every decision must be optimal within the rounding error
bound of its distances. Then 16-bit labels are compared with float32 ones. How long both sides take
is what `run.py --peer-root` measures.

    python bench/compare_peers.py --peer-root peers --out bench_out/peers.json
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy
import torch

import setok_kernels as sk
from setok_bench.peers import (
    PAIRS,
    PEERS,
    PeerCase,
    find_peer,
    load_functions,
    token_dict_pair,
    uniform_noise,
)
from setok_bench.provenance import provenance
from setok_kernels import compat, testing


def draw_case(seed: int, batch: int, threshold: tuple[float, float], masked: bool) -> PeerCase:
    """B up to `batch`, N 16 to 729, C 8 to 1152, k 1 to 16; normal tokens or groups of them.

    A mask leaves at least as many tokens as k and as clusters: with fewer the peers take padding.
    """
    g = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (), generator=g))

    batch, tokens, features, k = draw(1, batch), draw(16, 729), draw(8, 1152), draw(1, 16)
    clusters = draw(1, max(1, tokens // 4))
    x = torch.randn(batch, tokens, features, generator=g)
    if draw(0, 1):
        centres = torch.randn(batch, 12, features, generator=g)
        group = torch.randint(12, (batch, tokens, 1), generator=g)
        x = 0.3 * x + centres.gather(1, group.expand_as(x))
    mask = None
    if masked and draw(0, 1):
        least = max(k, clusters)
        length = torch.randint(least, tokens + 1, (batch, 1), generator=g)
        mask = (torch.arange(tokens) < length).float()
    low, high = threshold
    threshold = low + (high - low) * float(torch.rand((), generator=g))
    return PeerCase(x, k, clusters, threshold, mask, seed)


def same(a: tuple, b: tuple) -> bool:
    """All tensors of two results are equal, shapes included."""
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def within_rounding(name: str, case: PeerCase) -> bool:
    """Whether every decision of ours in float32 is one that exact numbers leave open.

    Judged in float64: each is optimal within the rounding error bound of its own distances.
    """
    x = case.x[:1] if name == "setok" else case.x
    options = dict(k=case.k, noise=uniform_noise(case, x.shape[:2], torch.float32))
    if name == "setok":
        options |= dict(threshold=case.threshold, min_clusters=64, order="index")
        options |= dict(cap="eccentricity")
    else:
        mask = None if case.mask is None else case.mask > 0
        options |= dict(num_clusters=case.clusters, token_mask=mask)
    testing.assert_valid_density_peaks(x, sk.dpc_knn(x, **options), **options)
    return True


def compare(name: str, functions: dict, exact_functions: dict, cases: int) -> dict:
    """Counts of equal results, and every mismatch with what float64 says of it."""
    make, ours, batch, threshold = PAIRS[name]
    peer, mine = make(functions, ours)
    exact_peer, _ = make(exact_functions, ours)
    masked = make is token_dict_pair
    equal, masks, mismatches = 0, 0, []
    for seed in range(cases):
        case = draw_case(seed, batch, threshold, masked)
        masks += case.mask is not None
        theirs, own = peer(case, torch.float32), mine(case, torch.float32)
        if same(theirs, own):
            equal += 1
            continue
        exact_theirs, exact_own = exact_peer(case, torch.float64), mine(case, torch.float64)
        mismatches.append(
            {
                "seed": seed,
                "shape": list(case.x.shape),
                "k": case.k,
                "clusters": case.clusters,
                "threshold": case.threshold,
                "masked": case.mask is not None,
                "equal_in_float64": same(exact_theirs, exact_own),
                "ours_is_within_rounding": within_rounding(name, case),
                "ours_is_float64s": same(own, exact_own),
                "theirs_is_float64s": same(theirs, exact_theirs),
            }
        )
    return {"cases": cases, "with_mask": masks, "equal": equal, "mismatches": mismatches}


def agreement_in_bfloat16(functions: dict) -> dict:
    """Pairs of tokens on which bfloat16 and float32 labels agree, for both sides of TCFormer.

    Planted groups of 20 x 36 tokens; the least and the mean over 20 draws.
    """
    peer, mine = token_dict_pair(functions, compat.tcformer.cluster_dpc_knn)
    shares = {"peer": [], "ours": []}
    for seed in range(20):
        x, _ = testing.planted_clusters(1, 720, 256, 20, seed=seed, noise=0.3)
        case = PeerCase(x.bfloat16(), 8, 20, 0.0, None, seed)
        for side, call in (("peer", peer), ("ours", mine)):
            low, high = (call(case, dtype)[0] for dtype in (torch.bfloat16, torch.float32))
            shares[side].append(float(testing.pair_agreement(low, high)))
    return {
        side: {"least": min(values), "mean": statistics.mean(values)}
        for side, values in shares.items()
    }


def write_fixtures(path: Path, functions: dict[str, dict], exact: dict[str, dict]) -> None:
    """Small cases and what the peers answer, for tests that need no copy of their code.

    Tokens are eighths in int8, so that they are the same numbers everywhere; cases whose answer
    float64 changes are left out, as no implementation could be held to them.
    """
    arrays, said = {}, {}
    for name, (make, ours, batch, threshold) in PAIRS.items():
        peer, _ = make(functions[name], ours)
        exact_peer, _ = make(exact[name], ours)
        kept = 0
        for seed in range(1000, 1100):
            case = draw_case(seed, batch, threshold, make is token_dict_pair)
            tokens, features = min(case.x.shape[1], 24 + seed % 40), min(case.x.shape[2], 12)
            k, clusters = max(2, min(case.k, 8)), max(1, min(case.clusters, tokens // 4))
            x = (case.x[:, :tokens, :features] * 8).round().clamp(-127, 127)
            mask = None if case.mask is None else torch.ones_like(case.mask[:, :tokens])
            if mask is not None:
                mask[:, max(k, clusters, tokens // 2) :] = 0
            case = PeerCase(x / 8, k, clusters, case.threshold, mask, seed)
            answer = peer(case, torch.float32)
            if kept == 12 or not same(answer, exact_peer(case, torch.float64)):
                continue
            noise = uniform_noise(case, case.x.shape[:2], torch.float32)
            entry = {"x": x.to(torch.int8), "noise": noise}
            entry |= {f"answer{i}": value for i, value in enumerate(answer)}
            if mask is not None:
                entry["mask"] = mask.to(torch.int8)
            arrays |= {f"{name}/{kept}/{key}": value.numpy() for key, value in entry.items()}
            said[f"{name}/{kept}"] = {"k": k, "clusters": clusters, "threshold": case.threshold}
            kept += 1
    source = {
        name: {"file": f"{peer.repository}: {peer.file}", "commit": peer.commit}
        for name, peer in PEERS.items()
    }
    versions = provenance(torch.device("cpu"))["versions"]
    about = {"made_by": "bench/compare_peers.py", "from": source, "versions": versions}
    arrays["about"] = numpy.array(json.dumps(about | {"cases": said}))
    numpy.savez_compressed(path, **arrays)


def main() -> None:
    """Compares every project whose source is given, prints the counts and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-root", type=Path, required=True, help="folder of the clones")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--out", type=Path, help="JSON file for the report")
    parser.add_argument("--fixtures", type=Path, help="npz file of small cases, for the tests")
    args = parser.parse_args()
    report = provenance(torch.device("cpu")) | {"peers": {}}
    paths = {}
    for name in PEERS:
        try:
            paths[name] = find_peer(args.peer_root, name)
        except FileNotFoundError as error:
            print(f"{name}: left out, {error}")
    functions = {name: load_functions(name, path) for name, path in paths.items()}
    exact = {name: load_functions(name, path, double=True) for name, path in paths.items()}
    for name in paths:
        found = compare(name, functions[name], exact[name], args.cases)
        report["peers"][name] = found
        unexplained = [m for m in found["mismatches"] if not m["equal_in_float64"]]
        print(
            f"{name}: {found['equal']} of {found['cases']} identical ({found['with_mask']} with "
            f"a mask); {len(found['mismatches'])} differ, of which "
            f"{len(found['mismatches']) - len(unexplained)} are identical in float64"
        )
        for mismatch in found["mismatches"]:
            print("   ", mismatch)
        if name == "tcformer":
            found["bfloat16_agreement"] = agreement_in_bfloat16(functions[name])
            print("    bfloat16 against float32 labels:", found["bfloat16_agreement"])
    if args.fixtures:
        write_fixtures(args.fixtures, functions, exact)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")
        print(f"written to {args.out}")


if __name__ == "__main__":
    main()
