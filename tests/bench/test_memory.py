"""Peaks of calls that take a known amount."""

import pytest
import torch

from setok_bench import memory
from setok_bench.memory import MemoryFailure, held_bytes, largest_input, measure_peak
from setok_bench.suites import LargestJob
from setok_bench.work import Shape

CPU = torch.device("cpu")


def test_a_product_takes_its_result():
    """`torch.bmm(x, x.mT)` of 3000 tokens: 34 MiB, and hardly more."""
    shape = Shape(1, 3000, 64, dtype=torch.float32)
    found = measure_peak("cluster_tokens", "bmm", shape, CPU)
    result = 4 * 3000 * 3000
    assert found["result_bytes"] == result
    assert result <= found["peak_bytes"] < result + (8 << 20)
    assert found["input_bytes"] == 4 * 3000 * 64
    assert found["seconds"] > 0


def test_a_failure_is_said():
    with pytest.raises(MemoryFailure, match="--peer-root DIR"):
        measure_peak("dpc_knn", "tcformer", Shape(1, 64, 8, dtype=torch.float32), CPU)


def test_held_bytes_count_a_tensor_once():
    x = torch.zeros(10)
    assert held_bytes((x, [x, torch.zeros(3, dtype=torch.int64)], None)) == 40 + 24


def fake_peak(bytes_of):
    def peak(op, implementation, shape, device, peer_root=None):
        return {"input_bytes": 0, "peak_bytes": bytes_of(shape.tokens)}

    return peak


def test_the_largest_input_is_searched_where_it_is_reached(monkeypatch):
    monkeypatch.setattr(memory, "measure_peak", fake_peak(lambda n: 4 * n * n))
    job = LargestJob("cpp", 8, 10**9, (1024, 4096, 16384, 65536))
    found = largest_input(job, torch.float32, CPU)
    assert found["how"] == "searched"
    # The square root of 10**9 / 4 is 15811; sizes are multiples of 128.
    assert found["tokens"] == 15811 // 128 * 128
    # Nothing larger is tried than the first that does not fit.
    assert max(point["tokens"] for point in found["points"]) == 16384


def test_the_largest_input_is_extrapolated_where_it_is_not(monkeypatch):
    monkeypatch.setattr(memory, "measure_peak", fake_peak(lambda n: 1000 * n + 500_000))
    job = LargestJob("cpp", 8, 10**9, (1024, 4096))
    found = largest_input(job, torch.float32, CPU)
    assert found["how"] == "extrapolated" and found["tokens"] == 999_500


def test_nothing_fits(monkeypatch):
    monkeypatch.setattr(memory, "measure_peak", fake_peak(lambda n: 10**12))
    found = largest_input(LargestJob("cpp", 8, 10**9, (1024,)), torch.float32, CPU)
    assert found["tokens"] == 0
