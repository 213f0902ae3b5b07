"""Runs a suite and returns its result, as `schema.json` describes it."""

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
from setok_bench.registry import Case, Contender, Job, Unavailable
from setok_bench.results import row_key
from setok_bench.suites import Suite
from setok_bench.timing import Call, as_graph, make_clock, percentiles, time_in_turns
from setok_bench.work import Rates, Shape, dtype_name

SCHEMA = 1
# Below this a call is replayed as a CUDA graph: the launches of its kernels take as long.
GRAPH_BELOW = 2e-3
# What two runs must share for one to go on where the other stopped.
_SAME = ("schema", "suite", "device", "versions", "commit", "uncommitted_changes", "settings")
_LISTS = ("parts", "rows", "memory", "largest")
_RATES = ("copy_bytes_per_s", "matmul_flops_per_s", "step_s")
_RATE_NAMES = ("copy", "matmul", "step")


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
    """One part, row, peak or search of a suite, to be carried out by `run`.

    Attributes:
        title: for people.
        kind: of list of a result that it adds to.
        run: gives what is added.
        key: by which a result that has it already is known, with `key_of`.
        seconds: that it may take, where that is known.
    """

    title: str
    kind: str
    run: Callable[[], dict]
    key: tuple
    seconds: float = 0.0


def key_of(kind: str, entry: dict) -> tuple:
    """What makes an entry of a result the same in two results."""
    if kind == "parts":
        return (entry["name"],)
    if kind == "rows":
        return row_key(entry)
    if kind == "memory":
        return (entry["op"], entry["contender"], *entry["shape"].values())
    return (entry["contender"], entry["features"], entry["limit_bytes"])


def steps(suite: Suite, settings: Settings, rates: Rates) -> Iterator[Step]:
    """What a suite is made of."""
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
            f"memory of {job.op}, {job.contender} {job.shape}",
            "memory",
            lambda job=job: measure_peak(
                job.op, job.contender, job.shape, settings.device, settings.peer_root
            ),
            (job.op, job.contender, *job.shape.to_dict().values()),
        )
    for job in suite.largest:
        yield Step(
            f"largest input, {job.contender}",
            "largest",
            lambda job=job: largest_input(job, suite.dtype, settings.device),
            (job.contender, job.features, job.limit_bytes),
        )


def run_suite(
    name: str,
    suite: Suite,
    settings: Settings,
    progress: Callable[[str, int, int], None] = lambda title, done, of: None,
    before: dict | None = None,
    keep: Callable[[dict], None] = lambda result: None,
) -> dict:
    """Measures everything that the budget has room for.

    Args:
        name: of the suite.
        suite: what to measure.
        settings: how.
        progress: called with the title of each step before it, the number done and of all.
        before: a result whose entries are taken over and not measured again, where it is of the
            same suite, settings, device, versions and commit.
        keep: called with the result after each step.

    Returns:
        The result, ready for JSON.
    """
    started = time.monotonic()
    result = _empty_result(name, suite, settings)
    earlier = 0.0
    if before is not None and _goes_on(before, result):
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


def _goes_on(before: dict, result: dict) -> bool:
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
    """Parts that failed, and contenders of ours that gave a wrong result or none."""
    parts = [p for p in result.get("parts", []) if p["status"] == "failed"]
    return [f"{part['name']}: {part['reason']}" for part in parts] + [
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
