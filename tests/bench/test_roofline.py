"""The bytes and flops of the Triton kernels, by hand for one shape."""

import pytest

pytest.importorskip("triton", exc_type=ImportError)

from setok_bench import roofline
from setok_bench.work import Shape, product


def test_dense_work_by_hand():
    work = roofline.kernels(Shape(64, 729, 1152))
    x = 64 * 729 * 1152 * 2
    assert work["variance"].bytes == x + 64 * 729
    # 12 blocks of 64 tokens, 78 tiles on or above the diagonal.
    assert work["distances"].flops == 64 * 78 * 64 * 64 * 1152 * 2
    # 46 minima and 8 groups of 16 distances a row, 8 indices and a density out.
    assert work["select"].bytes == 64 * 729 * (46 * 4 + 8 * 64 + 8 * 8 + 4)
    assert work["image"].steps == 64
    assert "parents" not in work and "labels" not in work


def test_streaming_reads_the_features_for_every_seed():
    shape = Shape(1, 16384, 1152)
    work = roofline.kernels(shape)
    assert "distances" not in work
    assert work["scope_step"].bytes > 64 * 16384 * 1152 * 2
    assert work["parents"].flops == product(shape).flops


def test_neighbours_leave_as_bits():
    work = roofline.one_shot(Shape(64, 729, 1152))
    x = 64 * 729 * 1152 * 2
    assert work["adjacency"].bytes == x + 64 * 729 * 23 * 4
    assert work["adjacency"].flops == 64 * 78 * 64 * 64 * 1152 * 2
    assert work["claim"].bytes == 64 * 64 * 23 * 4 + 64 * 729 * 4
    assert work["assign"].flops == 2 * 64 * 729 * 64 * 1152
