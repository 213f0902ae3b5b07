"""Deterministic renderer of ShapesWorld scenes: images, masks and footprints of objects."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from setok_kernels.config import check_count
from setokim.shapes_world.scene import BACKGROUNDS, COLOURS, Object, Scene

_OVERSAMPLING = 4
# Max reach of a shape from its centre, in radii.
_EXTENT = 1.25
# A regular shape is the set of points outside at most `spared` of n half-planes: the star of five
# points lies within four of its five lines. n, angle of the first normal (0 is right, a quarter
# turn down), distance of the lines in radii, spared.
_HALF_PLANES = {
    "square": (4, 0.0, 0.82, 0),
    "triangle": (3, math.pi / 2, 0.6, 0),
    "hexagon": (6, math.pi / 2, 0.87, 0),
    "star": (5, math.pi / 2, _EXTENT * math.cos(math.radians(72)), 1),
}
_CIRCLE = 0.95
_RING = (0.52, 1.0)
_CROSS = (0.36, 1.05)  # half the width and half the length of an arm
_DIAMOND = (0.75, 1.2)  # half its width and height
# In sides of the image: about two patches of 4 in 64 pixels each, for objects of any size.
_STRIPES = (0.078, 0.4)  # their period, and the fraction that is marked
_DOTS = (0.075, 0.021)  # their distance and radius
_CHECK = 0.054
# Marks have the object's colour, mixed with this fraction of this grey level. The exceptions keep
# them from looking like a background, which would seem to split the object.
_SHADE = (0.5, 0.0)
_SHADES = {"white": (0.65, 0.0), "brown": (0.25, 255.0), "black": (0.3, 255.0)}


def render(scene: Scene, size: int = 64) -> tuple[Image.Image, np.ndarray]:
    """Render a scene with soft edges.

    Args:
        scene: scene to render.
        size: height and width in pixels.

    Returns:
        The RGB image, and (size, size) int64: for each pixel 0 for the background or i for
        `scene.objects[i - 1]`, whichever covers the largest part of it, ties lowest.

    Raises:
        TypeError, ValueError: `size` is no integer of at least 1.
    """
    check_count("size", size)
    kinds = 2 * len(scene.objects) + 1
    canvas = np.zeros((size * _OVERSAMPLING, size * _OVERSAMPLING), np.uint8)
    for i in sorted(range(len(scene.objects)), key=lambda i: scene.objects[i].depth):
        box, inside, marked = footprint(scene.objects[i], len(canvas), textured=True)
        np.copyto(canvas[box], np.uint8(2 * i + 1) + marked, where=inside)

    # The numbers of samples of each kind of paint in each pixel give both image and masks.
    pixel = np.arange(len(canvas)) // _OVERSAMPLING
    keys = (pixel[:, None] * size + pixel) * kinds + canvas
    counts = np.bincount(keys.ravel(), minlength=size * size * kinds)
    counts = counts.reshape(size * size, kinds)
    paint = counts[:, 1:] @ np.array(
        [c for obj in scene.objects for c in paints_of(obj, scene.contrast)]
    )
    colours = paint + counts[:, :1] * _background(scene, size)  # (size², 3)
    pixels = np.rint(colours / _OVERSAMPLING**2).astype(np.uint8).reshape(size, size, 3)
    shown = np.concatenate([counts[:, :1], counts[:, 1::2] + counts[:, 2::2]], 1)
    return Image.fromarray(pixels), shown.argmax(1).reshape(size, size)


def footprint(
    obj: Object, side: int, textured: bool = False
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray | None]:
    """Return the samples of a canvas that an object covers, hidden or not.

    Args:
        obj: object to locate.
        side: height and width of the canvas in samples.
        textured: computation of the samples that the texture marks.

    Returns:
        Rows and columns of a box around the object; (h, w) bool, True for the object's samples in
        the box; and (h, w) bool, True for those with the colour of the marks, or None.
    """
    rows, dy = _axis(obj.y, obj.radius, side)
    columns, dx = _axis(obj.x, obj.radius, side)
    cos, sin = math.cos(obj.rotation), math.sin(obj.rotation)
    u = cos * dx + sin * dy[:, None]  # (h, w), right and
    v = cos * dy[:, None] - sin * dx  # down in the object's own frame, in sides of the image
    inside = _inside(obj.shape, u / obj.radius, v / obj.radius)
    return (rows, columns), inside, _marked(obj.texture, u, v) if textured else None


def _axis(centre: float, radius: float, side: int) -> tuple[slice, np.ndarray]:
    low = max(0, math.floor((centre - _EXTENT * radius) * side))
    high = min(side, math.ceil((centre + _EXTENT * radius) * side))
    return slice(low, high), (np.arange(low, high) + 0.5) / side - centre


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    if shape == "circle":
        return u * u + v * v <= _CIRCLE**2
    if shape == "ring":
        square = u * u + v * v
        return (square >= _RING[0] ** 2) & (square <= _RING[1] ** 2)
    if shape == "diamond":
        return np.abs(u) / _DIAMOND[0] + np.abs(v) / _DIAMOND[1] <= 1
    if shape == "cross":
        across, along = np.abs(u), np.abs(v)
        short, long = np.minimum(across, along), np.maximum(across, along)
        return (short <= _CROSS[0]) & (long <= _CROSS[1])
    number, first, distance, spared = _HALF_PLANES[shape]
    angles = [first + 2 * math.pi * i / number for i in range(number)]
    return sum(math.cos(a) * u + math.sin(a) * v > distance for a in angles) <= spared


def _marked(texture: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    if texture == "striped":
        period, fraction = _STRIPES
        return np.mod(v / period + fraction / 2, 1) < fraction
    if texture == "checked":
        return np.mod(np.floor(u / _CHECK) + np.floor(v / _CHECK), 2) == 1
    if texture == "dotted":
        distance, radius = _DOTS
        across, down = (np.mod(w + distance / 2, distance) - distance / 2 for w in (u, v))
        return across**2 + down**2 <= radius**2
    return np.zeros(u.shape, bool)


def paints_of(obj: Object, contrast: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the colours of an object and of its texture's marks, (3,) float64 each, in levels."""
    colour = np.array(COLOURS[obj.colour], np.float64)
    weight, level = _SHADES.get(obj.colour, _SHADE)
    return colour, colour + contrast * weight * (level - colour)


def _background(scene: Scene, size: int) -> np.ndarray:
    """Return (size², 3), the colour of the background in every pixel."""
    ramp = (np.arange(size) + 0.5) / size - 0.5
    light = scene.gradient[0] * ramp[:, None] + scene.gradient[1] * ramp  # (size, size)
    return np.clip(light.reshape(-1, 1) + BACKGROUNDS[scene.background], 0, 255)
