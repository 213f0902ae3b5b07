"""Reads a picture of the shapes world back from its pixels: a judge that has learnt nothing."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image

from setokim.shapes_world.render import footprint, paints_of
from setokim.shapes_world.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Object

# Pictures are looked at in this size, which the numbers of pixels below refer to.
_SIDE = 64
_SMALLEST_SIDE = 32
# Of the textures: weaker marks are recognised too, because all mixtures of paint and mark are.
_CONTRAST = 0.5
# Distances of colours are Euclidean, in levels of 255. First the background is fitted to what is
# within 60 of it, in the end within 40: errors of a drawing model, and noise.
_BACKDROP_REACHES = (60.0, 45.0, 40.0)
# A pixel that shows none of a colour is this far from it, over and above its true distance. Without
# that a soft edge, which is a mixture with the background, would take the name of a third colour.
_MIXED = 40.0
# Marks no farther from the background name no pixel: white things have them on grey. Where both
# may be meant a pixel says little about an outline.
_TOO_NEAR = 45.0
_DOUBTED = 0.3
# Nor does one of another thing, which may hide a part of this one.
_OTHER = 0.5
# What has less is a speck, half the smallest object of the shapes world. A thing is three pixels
# thick somewhere, which the soft edge between two things is not, or has the outline of a shape.
_LEAST_AREA = 30.0
_LEAST_OVERLAP = 0.35
_PURE = 0.6
_LEAST_PURE = 8
# Silhouettes to compare with.
_TURNS = (0.0, -0.35, -0.175, 0.175, 0.35)  # radians; the shapes world goes as far
_UNTURNED = ("circle", "ring")
_OVERSAMPLING = 4
_HALF = 16  # pixels from the middle of a silhouette to its edge
_WINDOW = 2 * _HALF + 1
_SHIFT = 2  # pixels either way that an outline is looked for around a centre of gravity


@dataclass(frozen=True, eq=False)
class Seen:
    """One thing that a picture shows.

    Attributes:
        shape: One of `SHAPES`.
        size: A name of `SIZES`.
        colour: A name of `COLOURS`.
        y: Of its centre, from 0 at the top of the picture to 1 at the bottom.
        x: Of its centre, from 0 at the left of the picture to 1 at the right.
        mask: (h, w) bool, its pixels in the picture.
        overlap: From 0 to 1, how well the pixels agree with the outline of that shape and size.
    """

    shape: str
    size: str
    colour: str
    y: float
    x: float
    mask: np.ndarray
    overlap: float


def parse(image: Image.Image) -> tuple[Seen, ...]:
    """Finds the things in a picture, whoever drew it.

    Every pixel is named after the background or the colour it can best be mixed from. A connected
    piece of one colour is a thing; its shape and size are those of the outline that overlaps it
    most. Two things of one colour that touch are taken for one. The same picture always gives the
    same answer.

    Args:
        image: Of mode RGB. Whatever its size, it is looked at in 64 x 64 pixels.

    Returns:
        What is there, from left to right. Pieces of less than about a third of the smallest object
        are not counted.

    Raises:
        TypeError, ValueError: `image` is no RGB picture of at least 32 pixels in height and width.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"image: expected a PIL picture, got {type(image).__name__}")
    if image.mode != "RGB":
        raise ValueError(f"image: expected mode RGB, got {image.mode}")
    if min(image.size) < _SMALLEST_SIDE:
        raise ValueError(f"image: expected sides of at least {_SMALLEST_SIDE}, got {image.size}")
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32).reshape(-1, 3)
    names, shares, doubtful = _explain(pixels, _fit_backdrop(pixels))
    seen = []
    for number, colour in enumerate(COLOURS):
        left = names == number  # (64, 64)
        pure = left & (shares >= _PURE)
        while (part := _largest_part(left, pure)) is not None:
            share = np.where(part, shares, 0)  # (64, 64)
            weight = np.where((names >= 0) & ~part, np.float32(_OTHER), np.float32(1))
            doubt = doubtful[number] & (part | (names < 0))
            weight[doubt] = _DOUBTED
            shape, size, y, x, overlap, outline = _fit_outline(share, weight)
            thing = overlap >= _LEAST_OVERLAP or not _grown(~part).all()
            if thing and share.sum() >= _LEAST_AREA:
                mask = (share > 0.5) | (doubt & (outline > 0.5))
                mask = _resized(mask, image.size)
                seen.append(Seen(shape, size, colour, y, x, mask, overlap))
            # Splinters of the same thing are no further things.
            left = left & ~part & ~_grown(outline > 0)
            pure &= left
    return tuple(sorted(seen, key=lambda thing: (thing.x, thing.y)))


def _fit_backdrop(pixels: np.ndarray) -> np.ndarray:
    """(4096, 3) float32: a plane for each channel, through the pixels of the background."""
    names = np.array(list(BACKGROUNDS.values()), np.float32)
    most = _BACKDROP_REACHES[0] ** 2  # what is farther is a thing, however far
    costs = [np.minimum(_squares(pixels - name), most).sum() for name in names]
    fit = np.broadcast_to(names[np.argmin(costs)], pixels.shape)
    ramp = (np.arange(_SIDE) + 0.5) / _SIDE - 0.5
    basis = np.stack([np.ones(_SIDE**2), np.repeat(ramp, _SIDE), np.tile(ramp, _SIDE)], 1)
    for reach in _BACKDROP_REACHES:
        near = _squares(pixels - fit) < reach**2
        if not near.any():
            break  # nothing of the background shows
        planes, *_ = np.linalg.lstsq(basis[near], pixels[near], rcond=None)  # (3, 3)
        fit = (basis @ planes).astype(np.float32)
    return fit


def _explain(pixels: np.ndarray, backdrop: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names every pixel.

    Args:
        pixels: (4096, 3) float32.
        backdrop: (4096, 3) float32, what they would be if nothing were there.

    Returns:
        (64, 64) int64, the number of a colour or -1 for the background; (64, 64) float32, how much
        of that colour shows; and (colours, 64, 64) bool, whether a pixel may be a mark of a colour
        as well as background.
    """
    colours = _mixtures()  # (colours, 3, 3), the paint, half and half, and the mark
    flat = colours.reshape(-1, 3)
    apart = pixels - backdrop
    # A pixel is backdrop + share * (colour - backdrop): inner products of its two differences.
    along = flat @ apart.T - (apart * backdrop).sum(1)  # (3 * colours, 4096)
    length = _squares(flat)[:, None] - 2 * flat @ backdrop.T + _squares(backdrop)
    share = np.clip((along + _MIXED**2) / (length + _MIXED**2), 0, 1)
    cost = _squares(apart) - 2 * share * along + share**2 * length + (_MIXED * (1 - share)) ** 2
    cost[length < _TOO_NEAR**2] = np.inf
    # The mixing cost pulls shares up, which would make outlines too large.
    share = np.clip(along / np.maximum(length, 1), 0, 1)

    cost, share, length = (a.reshape(len(colours), 3, -1) for a in (cost, share, length))
    best = cost.argmin(1)[:, None]
    cost = np.take_along_axis(cost, best, 1)[:, 0]  # (colours, 4096)
    share = np.take_along_axis(share, best, 1)[:, 0]
    names = np.where(cost.min(0) < _squares(apart), cost.argmin(0), -1)
    shown = np.where(names < 0, 0, share[names, np.arange(len(pixels))])
    to_mark = np.stack([_squares(pixels - mark) for mark in colours[:, 2]])
    doubtful = (length[:, 2] < _TOO_NEAR**2) & (to_mark < _TOO_NEAR**2)
    grid = (_SIDE, _SIDE)
    return names.reshape(grid), shown.reshape(grid), doubtful.reshape(-1, *grid)


@functools.lru_cache(1)
def _mixtures() -> np.ndarray:
    paints = np.stack(
        [
            paints_of(Object("circle", "large", colour, "plain", 0.5, 0.5), _CONTRAST)
            for colour in COLOURS
        ]
    )
    return np.stack([paints[:, 0], paints.mean(1), paints[:, 1]], 1).astype(np.float32)


def _squares(differences: np.ndarray) -> np.ndarray:
    """Squared lengths of (n, 3), which numpy sums faster so than along such a short axis."""
    return differences[:, 0] ** 2 + differences[:, 1] ** 2 + differences[:, 2] ** 2


def _largest_part(mask: np.ndarray, pure: np.ndarray) -> np.ndarray | None:
    """(64, 64) bool: the piece of `mask` with the most pixels of `pure`; None if all have few.

    Gaps of two pixels do not part it: a mark that looks like the background may be there.
    """
    reach = _grown(mask)
    left = pure.copy()
    best, most = None, _LEAST_PURE - 1
    while np.count_nonzero(left) > most:
        part = np.zeros_like(mask)
        part.flat[left.argmax()] = True
        number = 0
        while number < (number := np.count_nonzero(part)):
            part = _grown(part) & reach
        count = np.count_nonzero(part & left)
        if count > most:
            best, most = part & mask, count
        left &= ~part
    return best


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask and the eight neighbours of its pixels."""
    rows = mask.copy()
    rows[1:] |= mask[:-1]
    rows[:-1] |= mask[1:]
    grown = rows.copy()
    grown[:, 1:] |= rows[:, :-1]
    grown[:, :-1] |= rows[:, 1:]
    return grown


@functools.lru_cache(1)
def _silhouettes() -> tuple[list[tuple[str, str, float, float]], np.ndarray, np.ndarray]:
    """All outlines, turned and moved by half a pixel.

    Returns:
        Shape, size, and the centre's distance down and right from that of the middle pixel; (33²,
        n) float32, the shares of the pixels that are inside; and their squares.
    """
    kinds, shares = [], []
    halves = (0.0, 0.5)
    for shape, size, turn, down, right in itertools.product(SHAPES, SIZES, _TURNS, halves, halves):
        if turn and shape in _UNTURNED:
            continue
        y, x = ((_HALF + 0.5 + offset) / _SIDE for offset in (down, right))
        canvas = np.zeros((_SIDE * _OVERSAMPLING,) * 2, np.float32)
        box, inside, _ = footprint(Object(shape, size, "red", "plain", y, x, turn), len(canvas))
        canvas[box] = inside
        pixels = canvas.reshape(_SIDE, _OVERSAMPLING, _SIDE, _OVERSAMPLING).mean((1, 3))
        for soft in (pixels, _softened(pixels)):
            kinds.append((shape, size, down, right))
            shares.append(soft[:_WINDOW, :_WINDOW].ravel())
    table = np.stack(shares, 1)
    return kinds, table, table**2


def _softened(pixels: np.ndarray) -> np.ndarray:
    """(h, w) blurred by one pixel, with weights 1 4 6 4 1 in both directions."""
    line = np.array((1, 4, 6, 4, 1), np.float32) / 16
    for axis in (0, 1):
        pixels = sum(w * np.roll(pixels, k - 2, axis) for k, w in enumerate(line))
    return pixels


def _fit_outline(
    share: np.ndarray, weight: np.ndarray
) -> tuple[str, str, float, float, float, np.ndarray]:
    """Finds the silhouette that overlaps most with a thing.

    Args:
        share: (64, 64) float32, how much of each pixel is the thing's.
        weight: (64, 64) float32, how much each pixel counts.

    Returns:
        Shape, size, y and x of the centre over the side of the picture, the overlap, and (64, 64)
        float32, the silhouette.
    """
    kinds, table, squares = _silhouettes()
    border = _HALF + _SHIFT  # beyond the picture nothing counts
    axis = np.arange(_SIDE) / share.sum()
    # Of the first window in the padded picture: its middle is _SHIFT before the centre of gravity.
    top, left = (round(float(share.sum(1 - along) @ axis)) for along in (0, 1))
    reach = _WINDOW + 2 * _SHIFT
    box = slice(top, top + reach), slice(left, left + reach)
    weight = np.pad(weight, border)[box]  # (37, 37)
    share = np.pad(share, border)[box]
    # The intersection over the union, generalised to shares as Tanimoto's coefficient.
    both = _windows(share * weight) @ table  # (25 places, n)
    union = (share**2 * weight).sum() + _windows(weight) @ squares - both
    overlap = both / union
    place, which = np.unravel_index(overlap.argmax(), overlap.shape)
    row, column = divmod(int(place), 2 * _SHIFT + 1)
    top, left = top + row, left + column
    shape, size, down, right = kinds[which]
    canvas = np.zeros((_SIDE + 2 * border,) * 2, np.float32)
    canvas[top : top + _WINDOW, left : left + _WINDOW] = table[:, which].reshape(_WINDOW, _WINDOW)
    y, x = (top - _SHIFT + 0.5 + down) / _SIDE, (left - _SHIFT + 0.5 + right) / _SIDE
    outline = canvas[border:-border, border:-border]
    return shape, size, y, x, float(overlap[place, which]), outline


def _windows(values: np.ndarray) -> np.ndarray:
    """(25, 33²): every window of (37, 37)."""
    windows = np.lib.stride_tricks.sliding_window_view(values, (_WINDOW, _WINDOW))
    return windows.reshape(-1, _WINDOW**2)


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) bool from (64, 64), for a picture of `size` (w, h)."""
    width, height = size
    rows, columns = np.arange(height) * _SIDE // height, np.arange(width) * _SIDE // width
    return mask[rows[:, None], columns]
