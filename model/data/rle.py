"""Masks in COCO's formats: run lengths, as numbers or compressed text, and polygons.

Sizes in a file are checked before anything of that size is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from setok_kernels.extras import from_extra

# PIL refuses larger images as decompression bombs, so no mask is larger.
MAX_PIXELS = 178_956_970
# Max perimeter of a polygon in pixels: pycocotools keeps five points for each.
_MAX_PERIMETER = 1_000_000
# Bits of the largest run in a compressed text.
_MAX_BITS = 40


def decode_rle(code: Mapping[str, Any], size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode a mask from {"size": [h, w], "counts": list, text or bytes}.

    Runs of pixels outside and inside alternate, column by column from the top, outside first.

    Args:
        code: run lengths in the format of COCO and its tools.
        size: height and width that the mask must have; None for any up to `MAX_PIXELS` pixels.

    Returns:
        (h, w) bool.

    Raises:
        ValueError: a field is missing or malformed, the size is another one or too large, or the
            runs do not fill the image.
    """
    height, width = _size_of(code, size)
    counts = code.get("counts")
    if isinstance(counts, str | bytes):
        counts = _unpack(counts.encode("ascii", "replace") if isinstance(counts, str) else counts)
    if not isinstance(counts, Sequence) or not all(type(run) is int for run in counts):
        raise ValueError(f"counts: expected whole numbers or their text, got {counts!r:.80}")
    if any(run < 0 for run in counts) or sum(counts) != height * width:
        expected = f"runs of {height} × {width} pixels"
        raise ValueError(f"counts: expected {expected}, got {sum(counts)} in {len(counts)} runs")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def _size_of(code: Mapping[str, Any], expected: tuple[int, int] | None) -> tuple[int, int]:
    size = code.get("size")
    if (
        not isinstance(size, Sequence)
        or len(size) != 2
        or not all(type(side) is int and side >= 0 for side in size)
    ):
        raise ValueError(f"size: expected height and width, got {size!r:.80}")
    if expected is not None and tuple(size) != tuple(expected):
        raise ValueError(f"size: expected the image's {tuple(expected)}, got {tuple(size)}")
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"size: expected at most {MAX_PIXELS} pixels, got {size[0]} × {size[1]}")
    return size[0], size[1]


def decode_segmentation(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Decode the mask of a COCO annotation: polygons or run lengths.

    A polygon with fewer than three different corners encloses nothing and is dropped; at least one
    other polygon must remain.

    Args:
        segmentation: list of polygons, each a flat list of x and y, or a dict of run lengths.
        size: height and width of the image.

    Returns:
        (h, w) bool.

    Raises:
        ImportError: there are polygons, and pycocotools is not installed.
        ValueError: the annotation is neither, has another size, or no polygon encloses anything.
    """
    if isinstance(segmentation, Mapping):
        return decode_rle(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f"expected polygons or run lengths, got {segmentation!r:.80}")
    for polygon in segmentation:
        check_polygon(polygon, size)
    polygons = [one for one in segmentation if len(set(zip(one[::2], one[1::2], strict=True))) > 2]
    if not polygons:
        raise ValueError(f"expected a polygon of three corners x, y, got {segmentation!r:.80}")
    # pycocotools defines which pixels belong to an edge.
    with from_extra("eval"):
        from pycocotools import mask as coco

    return decode_rle(coco.merge(coco.frPyObjects(polygons, *size)), size)


def check_polygon(corners: Any, size: tuple[int, int]) -> None:
    """Check a polygon before it is rasterized: an edge takes memory and time by its length.

    Args:
        corners: flat list of x and y.
        size: height and width of the image.

    Raises:
        ValueError: the corners are no such list, a corner is not finite or farther outside the
            image than the image is wide or high, or the perimeter is too long.
    """
    if (
        not isinstance(corners, list)
        or len(corners) % 2
        or not all(isinstance(value, int | float) for value in corners)
    ):
        raise ValueError(f"expected corners x, y, got {corners!r:.80}")
    height, width = size
    for x, y in zip(corners[::2], corners[1::2], strict=True):
        # Values that are not finite fail the comparison too.
        if not (-width <= x <= 2 * width and -height <= y <= 2 * height):
            raise ValueError(
                f"expected corners near {width} × {height} pixels, got {x!r:.20}, {y!r:.20}"
            )
    points = np.array(corners, np.float64).reshape(-1, 2)  # (n, 2): x, y
    steps = np.abs(points - np.roll(points, 1, axis=0))
    length = float(steps.max(axis=1, initial=0).sum())
    if length > _MAX_PERIMETER:
        expected = f"a perimeter of at most {_MAX_PERIMETER} pixels"
        raise ValueError(f"expected {expected}, got {length:.0f}")


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask as {"size", "counts"}, with compressed text as `counts`.

    Args:
        mask: (h, w) bool.

    Raises:
        ValueError: dtype or shape does not fit.
    """
    if mask.dtype != bool or mask.ndim != 2:
        raise ValueError(f"mask: expected (h, w) bool, got {mask.dtype} {mask.shape}")
    pixels = mask.T.ravel()
    starts = np.flatnonzero(np.diff(pixels)) + 1
    edges = np.concatenate([[0], starts, [len(pixels)]])
    counts = np.diff(edges).tolist()
    if len(pixels) and pixels[0]:
        counts = [0, *counts]
    return {"size": list(mask.shape), "counts": _pack(counts)}


def _unpack(text: bytes) -> list[int]:
    """Decode runs: five bits a character, low ones first; from the fourth on a difference.

    The difference is to the run before the previous one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError(f"counts: expected text of '0' to 'o', got {chr(character)!r}")
        if shift > _MAX_BITS:
            raise ValueError(
                f"counts: expected runs below 2^{_MAX_BITS}, got more characters for one"
            )
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("counts: expected a complete text, got a truncated one")
    return counts


def _pack(counts: Sequence[int]) -> str:
    characters = []
    for number, count in enumerate(counts):
        value = count - (counts[number - 2] if number > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            # The highest bit of the last character is the sign of the number.
            more = value != (-1 if bits & 16 else 0)
            characters.append(chr(48 + (bits | 32 if more else bits)))
            if not more:
                break
    return "".join(characters)
