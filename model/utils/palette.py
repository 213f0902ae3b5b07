"""Colours for cluster maps."""

from __future__ import annotations

import colorsys
import math

import numpy as np


def palette(size: int) -> np.ndarray:
    """Return colours that can be told apart, for any number of them.

    Hues step by the golden ratio, so that a hue stays far from recent ones; lightness alternates.

    Returns:
        (size, 3) uint8.
    """
    golden = (math.sqrt(5) - 1) / 2
    lightness = (0.56, 0.42, 0.68)
    colours = [
        colorsys.hls_to_rgb((0.58 + i * golden) % 1.0, lightness[i % 3], 0.72) for i in range(size)
    ]
    return np.rint(np.array(colours).reshape(-1, 3) * 255).astype(np.uint8)
