"""An entry whose implementations take as long as they are told."""

import time
from unittest import mock

import torch

from setok_bench.registry import Entry, Implementation, Job, Unavailable
from setok_bench.runner import Settings, measure_row
from setok_bench.work import Rates, Shape, product

SHAPE = Shape(2, 16, 4, dtype=torch.float32)
SETTINGS = Settings(torch.device("cpu"), seconds=1.0, rounds=21, warmup=1)
RATES = Rates(copy=1e9, matmul=1e9)


class ThreadClock:
    """Of the time that this thread runs: what else the machine does is not in it."""

    def sample(self, call):
        start = time.thread_time()
        call()
        return time.thread_time() - start


def spin(seconds):
    """A call that keeps the processor busy for so long."""

    def call():
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
        return seconds

    return call


def right(case, result):
    assert isinstance(result, float)


def wrong(case, result):
    raise AssertionError("seed 3 (token 7) was a seed before\nand more")


def cannot(case):
    raise Unavailable("needs a package; pip install it")


def crash(case):
    def call():
        raise RuntimeError("out of memory")

    return call


def entry(**seconds):
    """Implementations "ours", "peer" and the yardstick "bmm", as far as they are given."""
    roles = {"ours": "ours", "peer": "peer", "bmm": "yardstick"}
    implementations = tuple(
        Implementation(name, lambda case, s=s: spin(s), right, roles[name])
        for name, s in seconds.items()
    )
    return Entry("spin", product, implementations, yardstick="bmm")


def row(made, settings=SETTINGS):
    with mock.patch("setok_bench.runner.make_clock", lambda device: ThreadClock()):
        return measure_row(Job(made, (SHAPE,)), SHAPE, settings, RATES)
