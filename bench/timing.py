"""Timing of several calls in turns, and statistics of the samples.

All calls of a comparison are timed in turns within one run, so that a change of clock or load
affects all of them. Sample i of each call belongs to the same round.
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

Call = Callable[[], object]

MIN_ROUNDS = 5
# Twice the L2 cache of an H100 or H200, and more than that of any earlier GPU.
_FLUSH_BYTES = 128 << 20


class Clock(Protocol):
    """Protocol of a clock that times one call."""

    def sample(self, call: Call) -> float:
        """Return the seconds until the result of `call` is ready."""


class WallClock:
    """Host clock, for devices that compute synchronously."""

    def sample(self, call: Call) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


class CudaClock:
    """Clock with CUDA events around a call.

    Args:
        device: CUDA device.
        cold: flag: overwrite the L2 cache before each call, so that inputs come from memory, as in
            a model whose other layers use the cache.
    """

    def __init__(self, device: torch.device, cold: bool = True):
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device) if cold else None
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def sample(self, call: Call) -> float:
        start, end = self._events
        if self._flush is not None:
            self._flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3  # ms


def make_clock(device: torch.device, cold: bool = True) -> Clock:
    """Return the clock for calls that compute on `device`."""
    return CudaClock(device, cold) if device.type == "cuda" else WallClock()


def as_graph(call: Call, warmup: int = 3) -> Call:
    """Capture `call` as a CUDA graph, whose replay excludes the host's work for each launch.

    Raises:
        RuntimeError: the call cannot be captured, e.g. because it waits for the device.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmup):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def time_in_turns(
    calls: dict[str, Call],
    clock: Clock,
    warmup: int = 3,
    rounds: int = 31,
    seconds: float = math.inf,
) -> dict[str, list[float]]:
    """Return the samples of each call in seconds, by its name; sample i belongs to round i.

    Args:
        calls: calls by name.
        clock: clock of the device.
        warmup: number of rounds before the first sample, at least 1.
        rounds: maximum number of samples.
        seconds: time limit of all rounds together, with a minimum of 5 rounds.
    """
    samples = {name: [] for name in calls}
    # Shuffled in each round: a call after a large one finds cold caches.
    order, shuffle = list(calls), random.Random(0).shuffle
    for left in range(warmup, 0, -1):
        shuffle(order)
        took = sum(clock.sample(calls[name]) for name in order)
        if left * took > seconds / 4:
            break
    if took > 0:
        rounds = min(rounds, max(MIN_ROUNDS, int(min(seconds / took, rounds))))
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            samples[name].append(clock.sample(calls[name]))
    return samples


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the interpolated 20th, 50th and 80th percentiles."""
    if len(seconds) == 1:
        return dict.fromkeys(("p20_s", "p50_s", "p80_s"), seconds[0])
    deciles = statistics.quantiles(seconds, n=10, method="inclusive")
    return {"p20_s": deciles[1], "p50_s": deciles[4], "p80_s": deciles[7]}


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the ratios within the rounds; changes between rounds cancel."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the exponent p of seconds ~ sizes**p, by least squares of the logarithms.

    Raises:
        ValueError: fewer than two different sizes.
    """
    if len(set(sizes)) < 2:
        raise ValueError(f"sizes: expected at least two different ones, got {list(sizes)}")
    x, y = [math.log(v) for v in sizes], [math.log(v) for v in seconds]
    return statistics.linear_regression(x, y).slope
