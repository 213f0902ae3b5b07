"""The bytes and flops of the roofline, by hand for one shape."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)


@pytest.fixture(scope="module")
def roofline():
    path = Path(__file__).parent.parent / "bench/roofline.py"
    spec = importlib.util.spec_from_file_location("roofline", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dense_work_by_hand(roofline):
    work = roofline.kernels(roofline.Shape(64, 729, 1152))
    x = 64 * 729 * 1152 * 2
    assert work["variance"].bytes == x + 64 * 729
    # 12 blocks of 64 tokens, 78 tiles on or above the diagonal.
    assert work["distances"].flops == 64 * 78 * 64 * 64 * 1152 * 2
    assert work["scope"].steps == 64
    assert work["labels"].bytes == 64 * 729 * (65 * 4 + 8)


def test_streaming_reads_the_features_for_every_seed(roofline):
    shape = roofline.Shape(1, 16384, 1152)
    work = roofline.kernels(shape)
    assert "distances" not in work
    assert work["scope_step"].bytes > 64 * 16384 * 1152 * 2
    assert work["parents"].flops == roofline.product(shape).flops


def test_neighbours_leave_as_bits(roofline):
    work = roofline.one_shot(roofline.Shape(64, 729, 1152))
    x = 64 * 729 * 1152 * 2
    assert work["adjacency"].bytes == x + 64 * 729 * 23 * 4
    assert work["adjacency"].flops == 64 * 78 * 64 * 64 * 1152 * 2
    assert work["claim"].bytes == 64 * 64 * 23 * 4 + 64 * 729 * 4
    assert work["assign"].flops == 2 * 64 * 729 * 64 * 1152


def test_the_floor_is_what_takes_longest(roofline):
    device = roofline.Device(copy=10.0, matmul=100.0, step=3.0, measured=False)
    assert roofline.Work(bytes=50, flops=100).floor(device) == 5.0
    assert roofline.Work(bytes=5, flops=900).floor(device) == 9.0
    assert roofline.Work(bytes=5, flops=100, steps=4).floor(device) == 12.0


def test_features_of_four_bytes_take_twice_the_bytes(roofline):
    half = roofline.product(roofline.Shape(2, 128, 64))
    full = roofline.product(roofline.Shape(2, 128, 64, dtype=torch.float32))
    assert full.bytes == 2 * half.bytes and full.flops == half.flops
