"""Provenance of results (device, versions, commit), and measured peak rates of the device."""

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
# Large enough to measure memory and not the caches.
_COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
_SIDE = {"cpu": 2048, "cuda": 8192}
_REPEATS = 9


def provenance(device: torch.device) -> dict:
    """Return device, versions, commit and time for a result."""
    return {"device": describe_device(device), **source()}


def source(checkout: Path = Path(__file__).parent) -> dict:
    """Return versions, commit of a checkout, and time."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": output("git", "-C", str(checkout), "rev-parse", "HEAD"),
        "uncommitted_changes": bool(output("git", "-C", str(checkout), "status", "--porcelain")),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def describe_device(device: torch.device) -> dict:
    """Return type, name, memory and threads of a device."""
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
    """Measure bytes copied and flops of a square product per second, the best of a few calls.

    A copy counts its bytes twice, read and written.
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
    # Seconds of a scope-loop step on a GPU, an estimate; bench/roofline.py has the counted value.
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
    """Return the output of a command, or None if it is missing or fails."""
    try:
        done = subprocess.run(command, text=True, capture_output=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
