"""Where, with what and from which source numbers come, and what the device does at best."""

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

import torch

from setok_bench.timing import make_clock, time_in_turns
from setok_bench.work import Rates

_PACKAGES = (
    "setok-kernels",
    "torch",
    "triton",
    "numpy",
    "transformers",
    "faiss-cpu",
    "scikit-learn",
    "flash-kmeans",
)
# Large enough for memory and not the caches to set the pace.
_COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
_SIDE = {"cpu": 2048, "cuda": 8192}
_REPEATS = 9


def provenance(device: torch.device) -> dict:
    """Device, versions, commit and time, as results have them."""
    return {"device": describe_device(device), **source()}


def source(checkout: Path = Path(__file__).parent) -> dict:
    """Versions, commit of a checkout, and time."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": output("git", "-C", str(checkout), "rev-parse", "HEAD"),
        "uncommitted_changes": bool(output("git", "-C", str(checkout), "status", "--porcelain")),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def describe_device(device: torch.device) -> dict:
    """Its kind, name and size; for the CPU also the threads in use."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "type": "cuda",
            "name": properties.name,
            "threads": torch.get_num_threads(),
            "memory_bytes": properties.total_memory,
            "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
        }
    return {
        "type": device.type,
        "name": _processor_name(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "driver": None,
        "cuda": None,
    }


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Bytes copied and flops of a square product per second, the best of a few calls.

    A copy moves its bytes twice, in and out.
    """
    size, side = _COPY_BYTES[device.type], _SIDE[device.type]
    source = torch.ones(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    matrix = torch.randn(side, side, device=device).to(dtype)
    out = torch.empty_like(matrix)
    calls = {
        "copy": lambda: target.copy_(source),
        "matmul": lambda: torch.mm(matrix, matrix, out=out),
    }
    best = {
        name: min(samples)
        for name, samples in time_in_turns(calls, make_clock(device), 2, _REPEATS).items()
    }
    # A turn of the scope loop on a GPU, an estimate: bench/roofline.py counts it.
    step = 1.5e-6 if device.type == "cuda" else 0.0
    return Rates(2 * size / best["copy"], 2 * side**3 / best["matmul"], step)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def output(*command: str) -> str | None:
    """What a command prints; None where there is no such command, or it fails."""
    try:
        done = subprocess.run(command, text=True, capture_output=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
