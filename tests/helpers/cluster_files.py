"""Images for `setok cluster`, and what it wrote."""

import json

import numpy as np
from PIL import Image

GRID = ["--grid", "6x8"]


def two_halves(width=64, height=48):
    """Left half blue, right half orange."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = (20, 40, 200)
    pixels[:, width // 2 :] = (230, 140, 20)
    return Image.fromarray(pixels)


def listing(folder):
    """Names in a folder, without that of its lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))
