"""Pixels of polygons against those that OpenCV 4.8.0 set (polylines and fillPoly)."""

import json
from pathlib import Path

import numpy as np
import pytest

from setokim.data.polygon_pixels import polygon_pixels
from setokim.data.rle import decode_rle

GOLDEN = json.loads((Path(__file__).parents[2] / "data" / "polygons_opencv.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_as_opencv(case):
    expected = decode_rle(case["mask"])
    found = polygon_pixels(case["corners"], expected.shape)
    assert found.dtype == bool and np.array_equal(found, expected)


def test_by_hand():
    # Both ends of an edge belong to it; 2.9 is cut to 2.
    square = polygon_pixels([[1, 1], [2.9, 1], [2.9, 3.5], [1, 3.5]], (5, 4))
    assert square.tolist() == [[1 <= x <= 2 and 1 <= y <= 3 for x in range(4)] for y in range(5)]
    # Areas enclosed twice are outside, except for their boundary.
    twice = [[0, 0], [6, 0], [6, 6], [0, 6]] * 2
    assert polygon_pixels(twice, (7, 7)).sum() == 24
    assert polygon_pixels([[0, 0]], (0, 4)).shape == (0, 4)


def test_malformed_corners():
    with pytest.raises(ValueError, match=r"^corners: expected at least one, got none$"):
        polygon_pixels([], (4, 4))
    for value in (float("nan"), float("inf"), 2**31, -(2**31) - 1):
        with pytest.raises(ValueError, match=r"^corners: expected 32-bit numbers, got "):
            polygon_pixels([[0, 0], [1, value]], (4, 4))
