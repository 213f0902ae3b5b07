"""Calls of known duration are reported as they are."""

import statistics
import time
from types import SimpleNamespace

import pytest
import torch

from setok_bench.timing import (
    MIN_ROUNDS,
    CudaClock,
    WallClock,
    as_graph,
    fit_exponent,
    make_clock,
    paired_ratio,
    percentiles,
    time_in_turns,
)

CPU = torch.device("cpu")


def within(got, expected, share=0.05):
    return abs(got - expected) <= share * expected


class Recording:
    """A call that notes how long it took by a clock of its own."""

    def __init__(self, call):
        self.call, self.took = call, []

    def __call__(self):
        start = time.monotonic_ns()
        self.call()
        self.took.append((time.monotonic_ns() - start) / 1e9)


@pytest.fixture
def sleep(monkeypatch):
    """Lets time pass, which otherwise stands still: a busy machine would add to it."""
    now = 0.0

    def pass_by(seconds):
        nonlocal now
        now += seconds

    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr("setok_bench.timing.time", clock)
    return pass_by


def test_a_sleep_is_reported_as_long_as_it_is(sleep):
    calls = {"short": lambda: sleep(1 / 64), "long": lambda: sleep(3 / 64)}
    samples = time_in_turns(calls, WallClock(), warmup=1, rounds=7)
    assert samples == {"short": [1 / 64] * 7, "long": [3 / 64] * 7}


def test_a_known_copy_is_reported_as_long_as_it_takes():
    source = torch.ones(16 << 20)  # 64 MiB
    target = torch.empty_like(source)
    copy = Recording(lambda: target.copy_(source))
    samples = time_in_turns({"copy": copy}, WallClock(), warmup=2, rounds=9)["copy"]
    assert within(statistics.median(samples), statistics.median(copy.took[-9:]))
    assert torch.equal(source, target)


def test_every_call_has_a_sample_of_every_round():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = time_in_turns(calls, WallClock(), warmup=2, rounds=20)
    assert all(len(values) == 20 for values in samples.values())
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    # The neighbours change, so that none is always the one before.
    assert len({tuple(r) for r in rounds}) > 3


def test_slow_calls_get_fewer_rounds_but_never_too_few(sleep):
    calls = {"slow": lambda: sleep(1 / 64)}
    assert len(time_in_turns(calls, WallClock(), 1, 100, seconds=10 / 64)["slow"]) == 10
    assert len(time_in_turns(calls, WallClock(), 1, 100, seconds=1 / 128)["slow"]) == MIN_ROUNDS
    assert len(time_in_turns(calls, WallClock(), 1, 3, seconds=9.0)["slow"]) == 3


def test_percentiles_by_hand():
    found = percentiles([float(i) for i in range(11)])
    assert found == {"p20_s": 2.0, "p50_s": 5.0, "p80_s": 8.0}
    assert percentiles([0.5]) == {"p20_s": 0.5, "p50_s": 0.5, "p80_s": 0.5}


def test_a_change_that_meets_both_cancels():
    # The machine runs at half its speed in half of the rounds.
    below = [1.0, 2.0, 1.0, 2.0, 1.0]
    assert paired_ratio([3.0 * b for b in below], below) == 3.0


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5, 2.0])
def test_exponents_are_found(exponent):
    sizes = [256, 512, 1024, 4096]
    assert fit_exponent(sizes, [7e-3 * n**exponent for n in sizes]) == pytest.approx(exponent)


def test_one_size_has_no_exponent():
    with pytest.raises(ValueError, match=r"sizes: expected at least two different ones"):
        fit_exponent([729, 729], [1.0, 2.0])


def test_a_cpu_is_timed_by_the_clock_on_the_wall():
    assert isinstance(make_clock(CPU), WallClock)


@pytest.mark.gpu
class TestOnAGpu:
    def test_a_known_copy(self):
        device = torch.device("cuda")
        source = torch.ones(1 << 28, device=device)  # 1 GiB
        target = torch.empty_like(source)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        target.copy_(source)
        start.record()
        for _ in range(20):
            target.copy_(source)
        end.record()
        end.synchronize()
        each = start.elapsed_time(end) / 1e3 / 20
        calls = {"copy": lambda: target.copy_(source)}
        for cold in (False, True):
            samples = time_in_turns(calls, CudaClock(device, cold), rounds=21)["copy"]
            assert within(statistics.median(samples), each)

    def test_a_graph_computes_the_same(self):
        x = torch.randn(256, 256, device="cuda")
        out = torch.zeros_like(x)
        replay = as_graph(lambda: torch.mm(x, x, out=out))
        out.zero_()
        replay()
        torch.cuda.synchronize()
        assert torch.equal(out, x @ x)
