"""Peak memory of one call, and the largest input within a memory limit.

On a CPU the call runs in a child process, because memory that an earlier call returned to the
allocator would hide the peak.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from setok_bench.registry import Case, Unavailable
from setok_bench.suites import ENTRIES, LargestJob
from setok_bench.work import Shape, dtype_name

# Number of tokens of the first call, which loads libraries and starts threads.
_FIRST = 128
_STEP = 128


class MemoryFailure(Exception):
    """Error: the call is not available here, or failed."""


def measure_peak(
    op: str, implementation: str, shape: Shape, device: torch.device, peer_root: Path | None = None
) -> dict:
    """Measure the memory of one call beyond its input.

    Returns:
        `input_bytes`; `peak_bytes`, the peak beyond the input; `result_bytes`, the part of it that
        the result holds; `seconds` of the call.

    Raises:
        MemoryFailure: the call is not available here, or failed.
    """
    if device.type == "cuda":
        measured = _peak_on_gpu(op, implementation, shape, device, peer_root)
    else:
        measured = _peak_in_child(op, implementation, shape, peer_root)
    return {
        "op": op,
        "contender": implementation,
        "shape": shape.to_dict(),
        "input_bytes": shape.input_bytes,
        **measured,
    }


def largest_input(job: LargestJob, dtype: torch.dtype, device: torch.device) -> dict:
    """Find the maximum number of tokens of one image for `cluster_tokens` within the limit.

    Returns:
        `tokens`, and `how`: "searched" (measured to within 128 tokens), or "extrapolated" by a line
        through the measured `points` if the limit was not reached. Each point has its tokens and
        total bytes.
    """
    points = {}

    def total(tokens: int) -> int:
        if tokens not in points:
            shape = Shape(1, tokens, job.features, dtype=dtype)
            found = measure_peak("cluster_tokens", job.implementation, shape, device)
            points[tokens] = found["input_bytes"] + found["peak_bytes"]
        return points[tokens]

    fits, too_many = 0, None
    for tokens in job.tokens:
        if total(tokens) > job.limit_bytes:
            too_many = tokens
            break
        fits = tokens
    if too_many is None:
        slope, start = statistics.linear_regression(*zip(*points.items(), strict=True))
        tokens, how = math.floor((job.limit_bytes - start) / slope), "extrapolated"
    else:
        while too_many - fits > _STEP:
            middle = (fits + too_many) // (2 * _STEP) * _STEP
            if middle <= fits:
                break
            fits, too_many = (
                (middle, too_many) if total(middle) <= job.limit_bytes else (fits, middle)
            )
        tokens, how = fits, "searched"
    return {
        "contender": job.implementation,
        "features": job.features,
        "limit_bytes": job.limit_bytes,
        "tokens": tokens,
        "how": how,
        "points": [{"tokens": n, "bytes": b} for n, b in sorted(points.items())],
    }


def held_bytes(value) -> int:
    """Return the bytes of the tensors in a result, each counted once."""
    tensors = {t.data_ptr(): t.numel() * t.element_size() for t in _tensors(value)}
    return sum(tensors.values())


def _tensors(value):
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            yield from _tensors(getattr(value, f.name))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


def _make(op: str, implementation: str, shape: Shape, device: torch.device, peer_root: Path | None):
    made = ENTRIES[op].only((implementation,)).implementations[0]
    return made.make(Case(shape, device, peer_root))


def _peak_on_gpu(op, implementation, shape, device, peer_root) -> dict:
    try:
        _make(op, implementation, dataclasses.replace(shape, tokens=_FIRST), device, peer_root)()
        call = _make(op, implementation, shape, device, peer_root)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        result = call()
        torch.cuda.synchronize()
    except (RuntimeError, Unavailable) as error:
        raise MemoryFailure(str(error)) from error
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() - before
    return {"peak_bytes": peak, "result_bytes": held_bytes(result), "seconds": seconds}


def _peak_in_child(op, implementation, shape, peer_root) -> dict:
    command = [sys.executable, "-m", "setok_bench.memory", op, implementation, str(shape)]
    command += [dtype_name(shape.dtype)]
    if peer_root is not None:
        command += ["--peer-root", str(peer_root)]
    child = subprocess.run(command, text=True, capture_output=True, check=False)
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines()
        raise MemoryFailure(lines[-1] if lines else f"exit code {child.returncode}")
    return json.loads(child.stdout.splitlines()[-1])


def _resident(field: str) -> int:
    """Return the resident bytes of this process: VmRSS now, VmHWM at the peak.

    `ru_maxrss` may include the peak of the parent process.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10


def main() -> None:
    """Make one call on the CPU and print its memory and time as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("op")
    parser.add_argument("implementation")
    parser.add_argument("shape")
    parser.add_argument("dtype")
    parser.add_argument("--peer-root", type=Path)
    args = parser.parse_args()
    shape = Shape.parse(args.shape, getattr(torch, args.dtype))
    where = (torch.device("cpu"), args.peer_root)
    first = dataclasses.replace(shape, tokens=min(shape.tokens, _FIRST))
    _make(args.op, args.implementation, first, *where)()
    call = _make(args.op, args.implementation, shape, *where)
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # resets VmHWM to VmRSS, to exclude the creation of the input
    before, start = _resident("VmHWM"), time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    taken = _resident("VmHWM") - before
    print(json.dumps({"peak_bytes": taken, "result_bytes": held_bytes(result), "seconds": seconds}))


if __name__ == "__main__":
    main()
