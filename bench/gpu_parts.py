"""Parts of the suite `gpu`: the first minutes on a GPU, in order of importance.

Each part returns measurements, or the reason why there are none. Tools of the CUDA toolkit run in a
child process with the time limit of the part.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import setok_kernels as sk
from setok_bench.registry import Case, Unavailable
from setok_bench.timing import Call, as_graph, make_clock, percentiles, time_in_turns
from setok_bench.work import Shape

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "test_gpu.py"
# Keyword of the tests of one small odd image size, fast enough under the sanitizers.
SMALL_TESTS = "small"
_ROUNDS = 21
_LARGE = Shape(64, 729, 1152)


@dataclass(frozen=True)
class Bench:
    """Device and input sizes of the measurements.

    Attributes:
        device: device to measure.
        shape: shape of the large batch.
        batches: batch sizes of the whole forward pass.
    """

    device: torch.device
    shape: Shape = _LARGE
    batches: tuple[int, ...] = (1, 8, 64)

    def case(self, images: int | None = None, tokens: int | None = None) -> Case:
        """Return the input, optionally with another number of images or tokens."""
        s = self.shape
        shape = Shape(
            images or s.images, tokens or s.tokens, s.features, s.k, s.clusters, dtype=s.dtype
        )
        return Case(shape, self.device)


@dataclass(frozen=True)
class Part:
    """A measurement on the device.

    Attributes:
        name: unique name.
        question: question that the measurement answers.
        seconds: time limit in seconds.
        run: function that returns the measurements, or raises `Unavailable`.
    """

    name: str
    question: str
    seconds: float
    run: Callable[[Bench, float], dict]


def measure_part(part: Part, bench: Bench) -> dict:
    """Run a part, and return its measurements, or the reason why there are none."""
    started = time.monotonic()
    found = {"name": part.name, "question": part.question, "status": "done", "reason": None}
    values: dict = {}
    try:
        values = part.run(bench, part.seconds)
    except Unavailable as error:
        found |= {"status": "unavailable", "reason": str(error)}
    except (AssertionError, RuntimeError, subprocess.TimeoutExpired) as error:
        # A failed part must not stop the others.
        text = str(error).strip() or type(error).__name__
        found |= {"status": "failed", "reason": text[-2000:]}
    return found | {"values": values, "seconds": round(time.monotonic() - started, 3)}


def replayed(call: Call, device: torch.device) -> Call:
    """Return the call as a CUDA graph, or itself on other devices."""
    return as_graph(call) if device.type == "cuda" else call


def medians(calls: dict[str, Call], device: torch.device, seconds: float) -> dict[str, float]:
    """Return the median seconds of each call, timed in turns."""
    samples = time_in_turns(calls, make_clock(device), 2, _ROUNDS, seconds)
    return {name: percentiles(found)["p50_s"] for name, found in samples.items()}


def products(bench: Bench, seconds: float) -> dict:
    """Time `torch.bmm(x, x.mT)` by graph replay, at N tokens and at the next multiple of 16."""
    calls = {}
    for tokens in (bench.shape.tokens, -(-bench.shape.tokens // 16) * 16):
        x = bench.case(tokens=tokens).tokens()
        call = replayed(lambda x=x: torch.bmm(x, x.mT), bench.device)
        calls[f"bmm_{tokens}_s"] = call
    return medians(calls, bench.device, seconds / 2)


def l2_rate(bench: Bench, seconds: float) -> dict:
    """Measure the bytes per second that all multiprocessors together read from L2."""
    from setok_bench.probes import read_again

    size, turns = (16 << 20, 16) if bench.device.type == "cuda" else (1 << 12, 2)
    programs = 132 * 8 if bench.device.type == "cuda" else 2
    source = torch.ones(size // 4, dtype=torch.float32, device=bench.device)
    sums = source.new_empty(programs)

    def call():
        read_again(source, sums, turns)

    call()
    numbers = turns * (source.numel() // programs)
    if not (sums == numbers).all():
        raise AssertionError(f"L2 rate: expected each sum to be {numbers}, got {sums[0].item()}")
    took = medians({"l2": replayed(call, bench.device)}, bench.device, seconds / 2)["l2"]
    return {"bytes_per_s": 4 * numbers * programs / took, "buffer_bytes": size}


def all_tests(bench: Bench, seconds: float) -> dict:
    """Run `pytest -m gpu`."""
    return _tests([], seconds, [])


def small_tests(bench: Bench, seconds: float) -> dict:
    """Run the GPU tests of small images."""
    return _tests([], seconds, ["-k", SMALL_TESTS])


def sanitized(tool: str) -> Callable[[Bench, float], dict]:
    """Return a run of the small tests under a tool of compute-sanitizer."""

    def run(bench: Bench, seconds: float) -> dict:
        program = shutil.which("compute-sanitizer")
        if program is None:
            raise Unavailable("compute-sanitizer: expected it on PATH; install the CUDA toolkit")
        command = [program, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
        return _tests(command, seconds, ["-k", SMALL_TESTS])

    return run


def _tests(before: list[str], seconds: float, options: list[str]) -> dict:
    if not TESTS.exists():
        raise Unavailable(f"tests: expected a checkout with {TESTS}, got no such file")
    command = [*before, sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(TESTS), *options]
    # torch's caching allocator would hide out-of-bounds reads from the sanitizers.
    given = {"TRITON_INTERPRET": "0", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1" if before else "0"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | given,
        text=True,
        capture_output=True,
        timeout=seconds,
        check=False,
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode:
        raise AssertionError("\n".join(lines[-30:]))
    return {"said": next((line for line in reversed(lines) if "passed" in line), lines[-1])}


def kernel_times(bench: Bench, seconds: float) -> dict:
    """Measure the seconds of each kernel of a forward pass, beside the roofline's."""
    measured = profile(_forward(bench.case()))
    return {"kernels": beside_the_model(measured, bench.shape)}


def beside_the_model(measured: dict[str, float], shape: Shape) -> dict[str, dict]:
    """Return the measured and expected seconds by kernel, None for a missing one."""
    from setok_bench import machine, roofline

    try:
        predictions = roofline.forward(shape, machine.H200)
    except (ValueError, OSError):
        predictions = []
    expected = {p.kernel: p.expected - p.gap for p in predictions}
    names = dict.fromkeys((*measured, *expected))
    return {n: {"measured_s": measured.get(n), "expected_s": expected.get(n)} for n in names}


def profile(call: Call, turns: int = 5) -> dict[str, float]:
    """Return the seconds of each of our kernels in one call, and of all others as "torch".

    Raises:
        Unavailable: the profiler recorded nothing on the device.
    """
    call()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(turns):
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    times: dict[str, float] = {}
    for event in found.key_averages():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            ours = event.key.endswith(("_fwd_kernel", "_bwd_kernel"))
            name = event.key.removesuffix("_kernel") if ours else "torch"
            times[name] = times.get(name, 0.0) + event.self_device_time_total / turns * 1e-6
    if not times:
        raise Unavailable("torch's profiler recorded nothing on the device")
    return times


def counters(bench: Bench, seconds: float) -> dict:
    """Read the counters of each kernel under ncu."""
    from setok_bench.probes import NCU_METRICS, ncu_rows

    program = shutil.which("ncu")
    if program is None:
        raise Unavailable("ncu: expected it on PATH; install the CUDA toolkit")
    probe = [sys.executable, "-m", "setok_bench.probes", str(bench.shape)]
    command = [program, "--csv", "--print-units", "base", "--metrics", ",".join(NCU_METRICS)]
    command += ["--kernel-name", "regex:.*_fwd_kernel", *probe]
    done = subprocess.run(command, text=True, capture_output=True, timeout=seconds, check=False)
    if "ERR_NVGPUCTRPERM" in done.stdout + done.stderr:
        raise Unavailable("ncu may not read the counters of this device (ERR_NVGPUCTRPERM)")
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-2000:])
    return {"kernels": ncu_rows(done.stdout)}


def tile_parts(bench: Bench, seconds: float) -> dict:
    """Time the distance kernels as they are, without minima, and without stores of rows."""
    from setok_bench.probes import tile_variants

    calls = tile_variants(bench.case().tokens(), bench.case().config)
    calls = {f"{name}_s": replayed(call, bench.device) for name, call in calls.items()}
    return medians(calls, bench.device, seconds / 2)


def scope_steps(bench: Bench, seconds: float) -> dict:
    """Measure the seconds and clocks of a scope-loop step, with rows in L2 and in memory."""
    from setok_bench.probes import clock

    few, many, found = bench.shape.clusters // 2, bench.shape.clusters, {"clock_hz": clock()}
    for rows, images in (("hot", 1), ("cold", bench.shape.images)):
        case = bench.case(images=images)
        took = [profile(_forward(case, max_clusters=n))["image_fwd"] for n in (few, many)]
        found[f"{rows}_step_s"] = step = (took[1] - took[0]) / (many - few)
        found[f"{rows}_step_clocks"] = step * found["clock_hz"]
    return found


def whole_forward(bench: Bench, seconds: float) -> dict:
    """Time the forward pass, eager and as a graph, and the matrix product as yardstick."""
    found: dict[str, float] = {}
    for images in bench.batches:
        case = bench.case(images=images)
        x, call = case.tokens(), _forward(case)
        calls = {
            f"eager_{images}_s": call,
            f"graph_{images}_s": replayed(call, bench.device),
            f"bmm_{images}_s": replayed(lambda x=x: torch.bmm(x, x.mT), bench.device),
        }
        found |= medians(calls, bench.device, seconds / 2 / len(bench.batches))
    return found


def _forward(case: Case, **changes) -> Call:
    x, config = case.tokens(), dataclasses.replace(case.config, **changes)
    return lambda: sk.cluster_tokens(x, config, backend="triton")


PARTS = (
    Part("bmm", "yardstick, with an odd number of tokens and a multiple of 16", 15, products),
    Part("l2", "bytes per second from L2 to all multiprocessors", 15, l2_rate),
    Part("small_tests", "pytest -m gpu, images of 150 tokens", 60, small_tests),
    Part("racecheck", "the same under compute-sanitizer racecheck", 80, sanitized("racecheck")),
    Part("memcheck", "the same under compute-sanitizer memcheck", 80, sanitized("memcheck")),
    Part("kernels", "seconds of each kernel beside the model's", 20, kernel_times),
    Part("ncu", "counters of each kernel", 60, counters),
    Part("tiles", "cost of minima and stores in the distance kernels", 30, tile_parts),
    Part("scope", "clocks of a step of the scope loop, rows hot and cold", 30, scope_steps),
    Part("forward", "the whole forward, eager and by graph", 40, whole_forward),
    Part("all_tests", "pytest -m gpu", 120, all_tests),
)
