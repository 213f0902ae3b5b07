"""Colours for cluster maps."""

from __future__ import annotations

import colorsys
import functools
import math

import numpy as np

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_LIGHTNESS = (0.56, 0.42, 0.68)


@functools.cache
def colour(label: int) -> tuple[int, int, int]:
    """Return the colour of a label as red, green and blue, 0 to 255.

    Hues step by the golden ratio, so that a hue stays far from recent ones; lightness alternates.
    """
    hue = (0.58 + label * _GOLDEN_RATIO) % 1.0
    red, green, blue = colorsys.hls_to_rgb(hue, _LIGHTNESS[label % 3], 0.72)
    return round(red * 255), round(green * 255), round(blue * 255)


def palette(size: int) -> np.ndarray:
    """Return the colours of the first labels, (size, 3) uint8; they can be told apart."""
    return np.array([colour(label) for label in range(size)], np.uint8).reshape(-1, 3)
