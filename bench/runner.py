"""Execution of a suite; the result has the format of `schema.json`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from setok_bench.checks import CHECK_TOKENS, small_enough
from setok_bench.gpu_parts import Bench, measure_part
from setok_bench.memory import MemoryFailure, largest_input, measure_peak
from setok_bench.provenance import measure_rates, provenance
from setok_bench.registry import Case, Implementation, Job, Unavailable
from setok_bench.results import row_key
from setok_bench.suites import Suite
from setok_bench.timing import Call, as_graph, make_clock, percentiles, time_in_turns
from setok_bench.work import Rates, Shape, dtype_name

SCHEMA = 1
# Seconds below which a call is replayed as a CUDA graph, because its launches would dominate.
GRAPH_BELOW = 2e-3
# Fields that must be equal to resume an earlier run.
_SAME = ("schema", "suite", "device", "versions", "commit", "uncommitted_changes", "settings")
_LISTS = ("parts", "rows", "memory", "largest")
_RATES = ("copy_bytes_per_s", "matmul_flops_per_s", "step_s")
_RATE_NAMES = ("copy", "matmul", "step")


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Attributes:
        device: device to measure.
        seconds: seconds of timing for each row.
        rounds: maximum number of samples of each implementation.
        warmup: number of rounds before the samples.
        peer_root: folder with clones of other projects, or None.
    """

    device: torch.device
    seconds: float
    rounds: int = 101
    warmup: int = 3
    peer_root: Path | None = None


@dataclass(frozen=True)
class Step:
    """One part, row, peak or search of a suite.

    Attributes:
        title: title for the progress bar.
        kind: name of the result's list that it extends.
        run: function that returns the new entry.
        key: key that identifies the entry, see `key_of`.
        seconds: time limit in seconds, if known.
    """

    title: str
    kind: str
    run: Callable[[], dict]
    key: tuple
    seconds: float = 0.0


def key_of(kind: str, entry: dict) -> tuple:
    """Return the key by which two results have the same entry."""
    if kind == "parts":
        return (entry["name"],)
    if kind == "rows":
        return row_key(entry)
    if kind == "memory":
        return (entry["op"], entry["contender"], *entry["shape"].values())
    return (entry["contender"], entry["features"], entry["limit_bytes"])


def steps(suite: Suite, settings: Settings, rates: Rates) -> Iterator[Step]:
    """Yield the steps of a suite."""
    for part in suite.parts:
        yield Step(
            part.name,
            "parts",
            lambda part=part: measure_part(part, Bench(settings.device)),
            (part.name,),
            part.seconds,
        )
    for job in suite.jobs:
        for shape in job.shapes:
            yield Step(
                f"{job.entry.op} {shape}",
                "rows",
                lambda job=job, shape=shape: measure_row(job, shape, settings, rates),
                (job.entry.op, job.group, *shape.to_dict().values()),
            )
    for job in suite.memory:
        yield Step(
            f"memory of {job.op}, {job.implementation} {job.shape}",
            "memory",
            lambda job=job: measure_peak(
                job.op, job.implementation, job.shape, settings.device, settings.peer_root
            ),
            (job.op, job.implementation, *job.shape.to_dict().values()),
        )
    for job in suite.largest:
        yield Step(
            f"largest input, {job.implementation}",
            "largest",
            lambda job=job: largest_input(job, suite.dtype, settings.device),
            (job.implementation, job.features, job.limit_bytes),
        )


def run_suite(
    name: str,
    suite: Suite,
    settings: Settings,
    progress: Callable[[str, int, int], None] = lambda title, done, of: None,
    before: dict | None = None,
    keep: Callable[[dict], None] = lambda result: None,
) -> dict:
    """Measure as much as the time budget allows.

    Args:
        name: name of the suite.
        suite: suite to measure.
        settings: settings of the run.
        progress: function called before each step with its title, the number done and the total.
        before: earlier result whose entries are not measured again, if suite, settings, device,
            versions and commit are the same.
        keep: function called with the result after each step.

    Returns:
        Result, ready for JSON.
    """
    started = time.monotonic()
    result = _empty_result(name, suite, settings)
    earlier = 0.0
    if before is not None and _resumes(before, result):
        result |= {kind: before.get(kind, []) for kind in _LISTS}
        result["rates"], earlier = before["rates"], before["seconds"]
        rates = Rates(*(result["rates"][key] for key in _RATES))
    else:
        rates = measure_rates(settings.device, suite.dtype)
        result["rates"] |= {
            key: getattr(rates, name) for key, name in zip(_RATES, _RATE_NAMES, strict=True)
        }
    todo = list(steps(suite, settings, rates))
    known = {(kind, key_of(kind, entry)) for kind in _LISTS for entry in result[kind]}
    for done, step in enumerate(todo):
        progress(step.title, done, len(todo))
        if (step.kind, step.key) in known:
            continue
        if time.monotonic() - started + step.seconds > suite.budget:
            result["left_out"].append(step.title)
            continue
        try:
            result[step.kind].append(step.run())
        except MemoryFailure as error:
            result["left_out"].append(f"{step.title}: {error}")
        result["seconds"] = earlier + time.monotonic() - started
        keep(result)
    result["seconds"] = earlier + time.monotonic() - started
    return result


def _resumes(before: dict, result: dict) -> bool:
    same = all(before[key] == result[key] for key in _SAME)
    return same and before["rates"]["dtype"] == result["rates"]["dtype"]


def _empty_result(name: str, suite: Suite, settings: Settings) -> dict:
    return {
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
        "rates": {"dtype": dtype_name(suite.dtype)},
        "parts": [],
        "rows": [],
        "memory": [],
        "largest": [],
        "left_out": [],
    }


def measure_row(job: Job, shape: Shape, settings: Settings, rates: Rates) -> dict:
    """Check all implementations of an entry at one shape, then time them in turns."""
    entry, case = job.entry, Case(shape, settings.device, settings.peer_root)
    implementations, calls = {}, {}
    for implementation in entry.implementations:
        if settings.device.type not in implementation.devices:
            continue
        found = {"role": implementation.role, "status": "timed", "reason": None}
        try:
            calls[implementation.name] = _checked_call(implementation, case)
        except Unavailable as error:
            found |= {"status": "unavailable", "reason": str(error)}
        except (AssertionError, RuntimeError) as error:
            # A failing peer must not stop the run. The report shows it, and a failure of one of our
            # backends makes the command fail.
            found |= {"status": "failed", "reason": _first_line(error)}
        implementations[implementation.name] = found
    clock = make_clock(settings.device)
    for name, call in calls.items():
        call, mode, peak = _prepare(call, clock, settings.device)
        calls[name] = call
        implementations[name] |= {"mode": mode, "peak_bytes": peak}
    if calls:
        samples = time_in_turns(calls, clock, settings.warmup, settings.rounds, settings.seconds)
        for name, seconds in samples.items():
            implementations[name] |= summarise(seconds, shape)
    for implementation in entry.implementations:
        if implementation.name in calls:
            floor = (implementation.work or entry.work)(shape).floor(rates)
            implementations[implementation.name]["floor_s"] = floor
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
        "contenders": implementations,
    }


def summarise(seconds: list[float], shape: Shape) -> dict:
    """Return samples, percentiles, and images and tokens per second at the median."""
    found = percentiles(seconds)
    return found | {
        "images_per_s": shape.images / found["p50_s"],
        "tokens_per_s": shape.total / found["p50_s"],
        "samples_s": [round(s, 9) for s in seconds],  # ns
    }


def failures(result: dict) -> list[str]:
    """Return lines for failed parts and for failures of our implementations."""
    parts = [p for p in result.get("parts", []) if p["status"] == "failed"]
    return [f"{part['name']}: {part['reason']}" for part in parts] + [
        f"{row['op']} {name}: {found['reason']}"
        for row in result["rows"]
        for name, found in row["contenders"].items()
        if found["status"] == "failed" and found["role"] in ("ours", "reference")
    ]


def _checked_call(implementation: Implementation, case: Case) -> Call:
    call, small = implementation.make(case), small_enough(case)
    if small is case:
        implementation.check(case, call())
    else:
        implementation.check(small, implementation.make(small)())
    return call


def _prepare(call: Call, clock, device: torch.device) -> tuple[Call, str, int | None]:
    """Return the call to time, its mode, and its peak memory on a GPU."""
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
        # The call waits for the device, as eager code may; the row's mode records that.
        torch.cuda.synchronize()
        return call, "call", peak


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
