"""Runs a suite and returns its result, as `schema.json` describes it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from setok_bench.checks import CHECK_TOKENS, small_enough
from setok_bench.memory import MemoryFailure, largest_input, measure_peak
from setok_bench.provenance import measure_rates, provenance
from setok_bench.registry import Case, Contender, Job, Unavailable
from setok_bench.suites import Suite
from setok_bench.timing import Call, as_graph, make_clock, percentiles, time_in_turns
from setok_bench.work import Rates, Shape, dtype_name

SCHEMA = 1
# Below this a call is replayed as a CUDA graph: the launches of its kernels take as long.
GRAPH_BELOW = 2e-3


@dataclass(frozen=True)
class Settings:
    """How a suite is run.

    Attributes:
        device: where.
        seconds: of timing for each row.
        rounds: most samples of each contender.
        warmup: rounds before them.
        peer_root: folder with clones of other projects, or None.
    """

    device: torch.device
    seconds: float
    rounds: int = 101
    warmup: int = 3
    peer_root: Path | None = None


@dataclass(frozen=True)
class Step:
    """One row, peak or search of a suite, to be carried out by `run`."""

    title: str
    kind: str
    run: Callable[[], dict]


def steps(suite: Suite, settings: Settings, rates: Rates) -> Iterator[Step]:
    """What a suite is made of."""
    for job in suite.jobs:
        for shape in job.shapes:
            yield Step(
                f"{job.entry.op} {shape}",
                "rows",
                lambda job=job, shape=shape: measure_row(job, shape, settings, rates),
            )
    for job in suite.memory:
        yield Step(
            f"memory of {job.op}, {job.contender} {job.shape}",
            "memory",
            lambda job=job: measure_peak(
                job.op, job.contender, job.shape, settings.device, settings.peer_root
            ),
        )
    for job in suite.largest:
        yield Step(
            f"largest input, {job.contender}",
            "largest",
            lambda job=job: largest_input(job, suite.dtype, settings.device),
        )


def run_suite(
    name: str,
    suite: Suite,
    settings: Settings,
    progress: Callable[[str, int, int], None] = lambda title, done, of: None,
) -> dict:
    """Measures everything that the budget has room for.

    Args:
        name: of the suite.
        suite: what to measure.
        settings: how.
        progress: called with the title of each step before it, the number done and of all.

    Returns:
        The result, ready for JSON.
    """
    started = time.monotonic()
    rates = measure_rates(settings.device, suite.dtype)
    result = {
        "schema": SCHEMA,
        "suite": name,
        "command": ["run.py", *sys.argv[1:]],
        **provenance(settings.device),
        "settings": {
            "seconds": settings.seconds,
            "rounds": settings.rounds,
            "warmup": settings.warmup,
            "graph_below_s": GRAPH_BELOW if settings.device.type == "cuda" else None,
            "check_tokens": CHECK_TOKENS,
        },
        "rates": {
            "dtype": dtype_name(suite.dtype),
            "copy_bytes_per_s": rates.copy,
            "matmul_flops_per_s": rates.matmul,
            "step_s": rates.step,
        },
        "rows": [],
        "memory": [],
        "largest": [],
        "left_out": [],
    }
    todo = list(steps(suite, settings, rates))
    for done, step in enumerate(todo):
        progress(step.title, done, len(todo))
        if time.monotonic() - started > suite.budget:
            result["left_out"].append(step.title)
            continue
        try:
            result[step.kind].append(step.run())
        except MemoryFailure as error:
            result["left_out"].append(f"{step.title}: {error}")
    result["seconds"] = time.monotonic() - started
    return result


def measure_row(job: Job, shape: Shape, settings: Settings, rates: Rates) -> dict:
    """All contenders of an entry at one shape: checked, then timed in turns."""
    entry, case = job.entry, Case(shape, settings.device, settings.peer_root)
    contenders, calls = {}, {}
    for contender in entry.contenders:
        if settings.device.type not in contender.devices:
            continue
        found = {"role": contender.role, "status": "timed", "reason": None}
        try:
            calls[contender.name] = _checked_call(contender, case)
        except Unavailable as error:
            found |= {"status": "unavailable", "reason": str(error)}
        except (AssertionError, RuntimeError) as error:
            # A peer that fails must not take the rest of the run with it; the report shows it, and
            # a failure of ours makes the command fail.
            found |= {"status": "failed", "reason": _first_line(error)}
        contenders[contender.name] = found
    clock = make_clock(settings.device)
    for name, call in calls.items():
        call, mode, peak = _prepare(call, clock, settings.device)
        calls[name] = call
        contenders[name] |= {"mode": mode, "peak_bytes": peak}
    if calls:
        samples = time_in_turns(calls, clock, settings.warmup, settings.rounds, settings.seconds)
        for name, seconds in samples.items():
            contenders[name] |= summarise(seconds, shape)
    for contender in entry.contenders:
        if contender.name in calls:
            floor = (contender.work or entry.work)(shape).floor(rates)
            contenders[contender.name]["floor_s"] = floor
    work = entry.work(shape)
    return {
        "op": entry.op,
        "group": job.group,
        "yardstick": entry.yardstick,
        "shape": shape.to_dict(),
        "work": {
            "bytes": work.bytes,
            "flops": work.flops,
            "steps": work.steps,
            "floor_s": work.floor(rates),
        },
        "contenders": contenders,
    }


def summarise(seconds: list[float], shape: Shape) -> dict:
    """Samples, their percentiles, and images and tokens per second at the median."""
    found = percentiles(seconds)
    return found | {
        "images_per_s": shape.images / found["p50_s"],
        "tokens_per_s": shape.total / found["p50_s"],
        "samples_s": [round(s, 9) for s in seconds],  # ns
    }


def failures(result: dict) -> list[str]:
    """Contenders of ours that gave a wrong result or none."""
    return [
        f"{row['op']} {name}: {found['reason']}"
        for row in result["rows"]
        for name, found in row["contenders"].items()
        if found["status"] == "failed" and found["role"] in ("ours", "reference")
    ]


def _checked_call(contender: Contender, case: Case) -> Call:
    call, small = contender.make(case), small_enough(case)
    if small is case:
        contender.check(case, call())
    else:
        contender.check(small, contender.make(small)())
    return call


def _prepare(call: Call, clock, device: torch.device) -> tuple[Call, str, int | None]:
    """The call to time, how it is made, and the peak of memory it takes on a GPU."""
    if device.type != "cuda":
        return call, "call", None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    if clock.sample(call) >= GRAPH_BELOW:
        return call, "call", peak
    try:
        return as_graph(call), "graph", peak
    except RuntimeError:
        # It waits for the device somewhere, as eager code does; the mode in the row says so.
        torch.cuda.synchronize()
        return call, "call", peak


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
