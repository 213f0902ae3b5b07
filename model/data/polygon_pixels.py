"""Rasterization of polygons, edges and inside, exactly as by OpenCV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

# Positions within a row are whole numbers of 1 / 65536 of a pixel.
_BITS = 16
_ONE = 1 << _BITS

_Point = tuple[int, int]


def polygon_pixels(corners: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """Return the pixels set by `cv2.polylines` (closed, 1 pixel wide) and `cv2.fillPoly`.

    Corners are truncated toward 0, as by `np.int32`. Areas that several loops of the polygon
    enclose an even number of times are outside. Masks of published data sets are made this way,
    and another rasterizer differs along every edge. The pixels are those of OpenCV 4.8, which
    ReasonSeg requires; later versions round the inside differently.

    Args:
        corners: x and y of at least one corner; may lie outside of the image.
        size: height and width of the image.

    Returns:
        (h, w) bool.

    Raises:
        ValueError: there is no corner, or a coordinate does not fit into 32 bits.
    """
    whole = [_whole(corner) for corner in corners]
    if not whole:
        raise ValueError("corners: expected at least one, got none")
    pixels = np.zeros(size, bool)
    if not pixels.size:
        return pixels
    sides = [(whole[number - 1], whole[number]) for number in range(len(whole))]
    for side in sides:
        _rasterize_line(pixels, *side)
    _fill(pixels, sides)
    return pixels


def _whole(corner: Sequence[float]) -> _Point:
    # NaN fails every comparison.
    if not all(-(2.0**31) <= value < 2.0**31 for value in corner):
        raise ValueError(f"corners: expected 32-bit numbers, got {corner!r:.80}")
    x, y = map(int, corner)
    return x, y


def _rasterize_line(pixels: np.ndarray, start: _Point, end: _Point) -> None:
    """Set the pixels of Bresenham's line, from left to right, within the image."""
    *ends, is_there = _clipped(start, end, pixels.shape)
    if not is_there:
        return
    # OpenCV reverses a line that goes left, but not a vertical one.
    (x, y), (x_end, y_end) = ends if ends[0][0] <= ends[1][0] else ends[::-1]
    across, down = x_end - x, abs(y_end - y)
    step = 1 if y_end >= y else -1
    long, short = max(across, down), min(across, down)
    far = np.arange(long + 1)
    # Number of steps in the shorter direction: rounded to the nearest, halves down.
    aside = -((long - 2 * short * far) // (2 * long)) if long else far
    rows, columns = (aside, far) if across >= down else (far, aside)
    pixels[y + step * rows, x + columns] = True


def _clipped(start: _Point, end: _Point, size: tuple[int, int]) -> tuple[_Point, _Point, bool]:
    """Clip a line to an image, its ends rounded as by OpenCV.

    Returns:
        Both ends, and whether part of the line lies within. If not, the ends are those at which the
        clipping stopped, from which OpenCV still takes the slope.
    """
    bottom, right = size[0] - 1, size[1] - 1
    (x1, y1), (x2, y2) = start, end
    if _beyond(x1, x2, right) or _beyond(y1, y2, bottom):
        return start, end, False
    if not 0 <= y1 <= bottom:
        edge = 0 if y1 < 0 else bottom
        x1, y1 = x1 + _part(edge - y1, x2 - x1, y2 - y1), edge
    if not 0 <= y2 <= bottom:
        edge = 0 if y2 < 0 else bottom
        x2, y2 = x2 + _part(edge - y2, x2 - x1, y2 - y1), edge
    if _beyond(x1, x2, right):
        return (x1, y1), (x2, y2), False
    if not 0 <= x1 <= right:
        edge = 0 if x1 < 0 else right
        x1, y1 = edge, y1 + _part(edge - x1, y2 - y1, x2 - x1)
    if not 0 <= x2 <= right:
        edge = 0 if x2 < 0 else right
        x2, y2 = edge, y2 + _part(edge - x2, y2 - y1, x2 - x1)
    return (x1, y1), (x2, y2), True


def _beyond(one: int, other: int, last: int) -> bool:
    """Return whether both lie on the same side outside of 0 to `last`."""
    return max(one, other) < 0 or min(one, other) > last


def _part(along: int, rise: int, run: int) -> int:
    """Return `along` * `rise` / `run` in double precision, truncated toward 0."""
    return int(float(along) * rise / run)


def _fill(pixels: np.ndarray, sides: Sequence[tuple[_Point, _Point]]) -> None:
    """Set the pixels between the first and second crossing of a row, the third and fourth, ..."""
    height, width = pixels.shape
    crossings = list(_crossings(sides, pixels.shape))
    if not crossings:
        return
    rows, columns = (np.concatenate(parts) for parts in zip(*crossings, strict=True))
    order = np.lexsort((columns, rows))
    # A closed polygon crosses a row an even number of times.
    rows, columns = rows[order][::2], columns[order].reshape(-1, 2)
    first = np.clip(columns[:, 0] >> _BITS, 0, width)
    beyond = np.clip((columns[:, 1] >> _BITS) + 1, 0, width)
    turns = np.zeros((height, width + 1), np.int64)
    np.add.at(turns, (rows, first), 1)
    np.add.at(turns, (rows, beyond), -1)
    pixels |= turns.cumsum(1)[:, :width] > 0


def _crossings(
    sides: Sequence[tuple[_Point, _Point]], size: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows that each side crosses and the crossings' columns in 1 / 65536 of a pixel.

    A side belongs to the row it begins in, not to the one it ends in.
    """
    for start, end in sides:
        if start[1] == end[1]:
            continue
        (x1, y1), (x2, y2), shift = _slope_of(start, end, size)
        numerator, denominator = (x2 - x1) << _BITS, y2 - y1
        # Truncated toward 0.
        slope = abs(numerator) // abs(denominator)
        slope = slope if (numerator < 0) == (denominator < 0) else -slope
        x, y = (x1, y1) if start[1] < end[1] else (x2, y2)
        top, low = sorted((start[1], end[1]))
        rows = np.arange(max(top, 0), min(low, size[0]))
        yield rows, (x << _BITS) + shift + (rows - y) * slope


def _slope_of(start: _Point, end: _Point, size: tuple[int, int]) -> tuple[_Point, _Point, int]:
    """Return the points that determine a side's slope, and the shift that OpenCV applies.

    A side within the image is rounded to the nearest pixel. A side that leaves the image is clipped
    to it, which has rounded its end already.
    """
    *ends, _ = _clipped(start, end, size)
    if all(0 <= x < size[1] and 0 <= y < size[0] for x, y in (start, end)):
        return start, end, _ONE // 2
    return (start, end, 0) if ends[0][1] == ends[1][1] else (*ends, 0)
