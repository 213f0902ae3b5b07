"""Compare the drop-ins of `setok_kernels.compat` with the original functions.

Clone the other projects into one folder; their sources are not part of this repository. Only the
functions listed in `peers.py` are executed. Cases are random; both sides get the same tokens and
noise. If float32 results differ, both sides run again in float64: equal results there mean a tie at
rounding level. The report has the side that kept the float64 result. Our decisions must be optimal
within the rounding error bound of their distances. Finally 16-bit labels are compared with float32
labels. `run.py --peer-root` measures the times of both sides.

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


def sample_case(seed: int, batch: int, threshold: tuple[float, float], masked: bool) -> PeerCase:
    """Sample B up to `batch`, N 16 to 729, C 8 to 1152, k 1 to 16; normal tokens or groups.

    A mask leaves at least k and `clusters` tokens: with fewer, the originals use padding.
    """
    g = torch.Generator().manual_seed(seed)

    def sample(low, high):
        return int(torch.randint(low, high + 1, (), generator=g))

    batch, tokens, features, k = sample(1, batch), sample(16, 729), sample(8, 1152), sample(1, 16)
    clusters = sample(1, max(1, tokens // 4))
    x = torch.randn(batch, tokens, features, generator=g)
    if sample(0, 1):
        centres = torch.randn(batch, 12, features, generator=g)
        group = torch.randint(12, (batch, tokens, 1), generator=g)
        x = 0.3 * x + centres.gather(1, group.expand_as(x))
    mask = None
    if masked and sample(0, 1):
        shortest = max(k, clusters)
        length = torch.randint(shortest, tokens + 1, (batch, 1), generator=g)
        mask = (torch.arange(tokens) < length).float()
    low, high = threshold
    threshold = low + (high - low) * float(torch.rand((), generator=g))
    return PeerCase(x, k, clusters, threshold, mask, seed)


def same(a: tuple, b: tuple) -> bool:
    """Return True if all tensors of two results are equal, shapes included."""
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def within_rounding(name: str, case: PeerCase) -> bool:
    """Assert that our float32 decisions are optimal within their rounding error bound; return True.

    The bound is that of the distances, in float64.
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
    """Return the counts of equal results, and each mismatch with its float64 results."""
    make, ours, batch, threshold = PAIRS[name]
    peer, mine = make(functions, ours)
    exact_peer, _ = make(exact_functions, ours)
    masked = make is token_dict_pair
    equal, masks, mismatches = 0, 0, []
    for seed in range(cases):
        case = sample_case(seed, batch, threshold, masked)
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
    """Return the fraction of token pairs on which bfloat16 and float32 labels agree, for TCFormer.

    Minimum and mean of both sides, over 20 samples of 20 planted groups of 36 tokens.
    """
    peer, mine = token_dict_pair(functions, compat.tcformer.cluster_dpc_knn)
    agreements = {"peer": [], "ours": []}
    for seed in range(20):
        x, _ = testing.planted_clusters(1, 720, 256, 20, seed=seed, noise=0.3)
        case = PeerCase(x.bfloat16(), 8, 20, 0.0, None, seed)
        for side, call in (("peer", peer), ("ours", mine)):
            low, high = (call(case, dtype)[0] for dtype in (torch.bfloat16, torch.float32))
            agreements[side].append(float(testing.pair_agreement(low, high)))
    return {
        side: {"least": min(values), "mean": statistics.mean(values)}
        for side, values in agreements.items()
    }


def write_fixtures(path: Path, functions: dict[str, dict], exact: dict[str, dict]) -> None:
    """Write small cases with the originals' results, for tests without their code.

    Tokens are eighths stored as int8, so that they are identical everywhere. Cases whose result
    differs in float64 are left out, because no implementation can be required to match them.
    """
    arrays, arguments = {}, {}
    for name, (make, ours, batch, threshold) in PAIRS.items():
        peer, _ = make(functions[name], ours)
        exact_peer, _ = make(exact[name], ours)
        kept = 0
        for seed in range(1000, 1100):
            case = sample_case(seed, batch, threshold, make is token_dict_pair)
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
            arguments[f"{name}/{kept}"] = {
                "k": k,
                "clusters": clusters,
                "threshold": case.threshold,
            }
            kept += 1
    source = {
        name: {"file": f"{peer.repository}: {peer.file}", "commit": peer.commit}
        for name, peer in PEERS.items()
    }
    versions = provenance(torch.device("cpu"))["versions"]
    about = {"made_by": "bench/compare_peers.py", "from": source, "versions": versions}
    arrays["about"] = numpy.array(json.dumps(about | {"cases": arguments}))
    numpy.savez_compressed(path, **arrays)


def main() -> None:
    """Compare every project with a clone, print the counts and write the report."""
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
