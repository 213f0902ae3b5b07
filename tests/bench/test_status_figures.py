"""The goals that docs/status.md calls missed are those of the committed counts."""

import re
from pathlib import Path

import pytest

from setok_bench import roofline
from setok_bench.machine import H200
from setok_bench.work import Shape

PAGE = Path(__file__).parents[2] / "docs/status.md"


def expected():
    """Seconds, or ratios, by the first words of their lines."""
    counts = roofline.load_counts()
    many, one, long = Shape(64, 729, 1152), Shape(1, 729, 1152), Shape(1, 16384, 1152)
    forward = roofline.total(roofline.forward(many, H200, counts))
    backward = roofline.total(roofline.backward(many, H200, counts))
    return {
        "one image of 729": roofline.total(roofline.forward(one, H200, counts)),
        "forward and backward / forward, 64": (forward + backward) / forward,
        "one image of 16384": roofline.total(roofline.streaming(long, H200, counts)),
        "64 images": forward / roofline.product_seconds(many, H200),
    }


@pytest.mark.parametrize("name", expected())
def test_expected_figures(name):
    (line,) = re.findall(rf"^\| {name}.*", PAGE.read_text(), re.M)
    number, _, unit = line.split("|")[3].strip().partition(" ")
    scale = {"us": 1e-6, "ms": 1e-3, "": 1.0}[unit]
    digits = len(number.partition(".")[2])
    assert float(number) == round(expected()[name] / scale, digits)
