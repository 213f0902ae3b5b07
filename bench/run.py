"""Times the clustering against one plain matrix product of the same input, in the same run.

The product `torch.bmm(x, x.mT)` makes all pairs of tokens, twice over: half of its flops at its own
rate is the floor of any method that looks at all pairs. All calls are timed in turns, so that a
change of clock or load meets all of them. Input is standard normal and all `max_clusters` steps of
the loop are run: the slow case.

    python bench/run.py --shapes 1x729x1152 8x729x1152 --out bench_out/run.json
    python bench/run.py --reference --peer tcformer=TCFormer/tcformer_module/tcformer_utils.py
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from peers import load_functions

import setok_kernels as sk


def parse_shape(text: str) -> tuple[int, int, int]:
    """Reads "BxNxD"."""
    batch, tokens, features = map(int, text.split("x"))
    return batch, tokens, features


def time_in_turns(
    calls: dict[str, Callable[[], object]], device: torch.device, warmup: int, repeats: int
) -> dict[str, list[float]]:
    """Raw samples in seconds, each until the device has finished, by the name of the call."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    samples = {name: [] for name in calls}
    # In a new order each time: what runs after a large neighbour finds its caches cold.
    order, shuffle = list(calls), random.Random(0).shuffle
    for repeat in range(-warmup, repeats):
        shuffle(order)
        for name in order:
            synchronize()
            start = time.perf_counter()
            calls[name]()
            synchronize()
            if repeat >= 0:
                samples[name].append(time.perf_counter() - start)
    return samples


def summarise(seconds: list[float]) -> dict:
    """Percentiles in milliseconds beside the samples they come from."""
    deciles = statistics.quantiles(seconds, n=10, method="inclusive")
    return {
        "p20_ms": deciles[1] * 1e3,
        "p50_ms": deciles[4] * 1e3,
        "p80_ms": deciles[7] * 1e3,
        "samples_ms": [value * 1e3 for value in seconds],
    }


def load_peer(text: str) -> tuple[str, Callable]:
    """Reads "NAME=FILE": `cluster_dpc_knn` of TCFormer or Chat-UniVi, in a copy of its source."""
    name, _, path = text.partition("=")
    return name, load_functions(name, Path(path))["cluster_dpc_knn"]


def with_backward(x: torch.Tensor, config: sk.ClusterConfig, backend: str) -> Callable:
    """Forward, and from a gradient of the masks back to tokens and hyper-parameters."""
    x = x.detach().requires_grad_()
    module = sk.TokenClustering(config, backend=backend).to(x.device)
    grad = torch.randn(x.shape[0], config.max_clusters + 1, x.shape[1], device=x.device)
    leaves = [x, *module.parameters()]
    return lambda: torch.autograd.grad(module(x).masks, leaves, grad)


def measure(shape, dtype: torch.dtype, device: torch.device, args: argparse.Namespace) -> dict:
    """One row of the report."""
    batch, tokens, features = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device, dtype)
    config = sk.ClusterConfig(stop_residual=0.0)
    counts = sk.cluster_tokens(x, config, backend=args.backend).counts.tolist()
    calls = {
        "cluster_tokens": lambda: sk.cluster_tokens(x, config, backend=args.backend),
        "bmm": lambda: torch.bmm(x, x.mT),
    }
    if args.backward:
        calls["with_backward"] = with_backward(x, config, args.backend)
    if args.backward and args.reference:
        calls["reference_with_backward"] = with_backward(x, config, "reference")
    if args.reference:
        calls["reference"] = lambda: sk.cluster_tokens(x, config, backend="reference")
    for name, cluster in args.peer:
        calls[name] = lambda cluster=cluster: cluster({"x": x}, config.max_clusters, config.k)
    samples = time_in_turns(calls, device, args.warmup, args.repeats)
    timings = {name: summarise(seconds) for name, seconds in samples.items()}
    ours = timings["cluster_tokens"]["p50_ms"]
    # 2 flops per multiply-add; reads x twice, writes the product once.
    bmm_flops = 2 * batch * tokens * tokens * features
    bmm_bytes = (2 * batch * tokens * features + batch * tokens * tokens) * x.element_size()
    return {
        "op": "cluster_tokens",
        "backend": args.backend,
        "shape": shape,
        "dtype": str(dtype).removeprefix("torch."),
        "clusters": counts,
        "bmm_flops": bmm_flops,
        "bmm_bytes": bmm_bytes,
        "over_bmm": ours / timings["bmm"]["p50_ms"],
        # Pairs of tokens, each with itself included, over all entries of the product.
        "floor_over_bmm": (tokens + 1) / (2 * tokens) if tokens else 0.0,
        "over_us": {
            name: row["p50_ms"] / ours
            for name, row in timings.items()
            if name not in ("cluster_tokens", "bmm")
        },
        "timings": timings,
    }


def processor_name() -> str:
    """The CPU model, where the system says it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def provenance(device: torch.device) -> dict:
    """Where, with what and from which source the numbers come."""

    def git(*command):
        root = Path(__file__).parent
        result = subprocess.run(["git", *command], cwd=root, text=True, capture_output=True)
        return result.stdout.strip() if result.returncode == 0 else None

    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else processor_name(),
        "threads": torch.get_num_threads(),
        "versions": {
            "setok_kernels": sk.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain")),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def main() -> None:
    """Measures every shape, prints a table and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shapes = ["1x729x1152", "8x729x1152", "1x576x1024", "8x576x1024", "1x256x384", "8x256x384"]
    parser.add_argument(
        "--shapes", nargs="+", type=parse_shape, default=[*map(parse_shape, shapes)]
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--reference", action="store_true", help="time the reference too")
    parser.add_argument("--backward", action="store_true", help="time forward and backward too")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        type=load_peer,
        metavar="NAME=FILE",
        help="time the cluster_dpc_knn in a copy of another project's source file too",
    )
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--out", type=Path, help="JSON file for the report")
    args = parser.parse_args()

    report = provenance(args.device) | {"rows": []}
    print(f"{report['device']}, {report['threads']} threads, torch {torch.__version__}")
    print("medians; over_us: how many times as long as cluster_tokens")
    for shape in args.shapes:
        row = measure(shape, getattr(torch, args.dtype), args.device, args)
        report["rows"].append(row)
        ours, bmm = (row["timings"][name]["p50_ms"] for name in ("cluster_tokens", "bmm"))
        others = "".join(f"  {name} {ratio:.1f}x" for name, ratio in row["over_us"].items())
        print(
            f"{'x'.join(map(str, shape)):>12}  {ours:8.2f} ms  bmm {bmm:8.2f} ms  "
            f"ratio {row['over_bmm']:.2f} (floor {row['floor_over_bmm']:.2f}){others}"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")
        print(f"written to {args.out}")


if __name__ == "__main__":
    main()
