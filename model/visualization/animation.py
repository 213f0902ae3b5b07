"""Animations of Algorithm 1: the photograph, the scope after each step, the cluster map."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from setokim.utils.palette import colour
from setokim.visualization.cluster_maps import count, draw_map, fit, font
from setokim.visualization.image_clusters import ImageClusters
from setokim.visualization.patch_maps import draw_scope, outline_colour, scope_after

FORMATS = ("gif", "webp")
# More steps are shown in groups of equal size: an animation stays below half a minute.
MAX_STEP_FRAMES = 32
# Milliseconds.
FIRST_TIME, STEP_TIME, LAST_TIME = 1500, 700, 4000

_PANEL = 480
_MARGIN = 16
# The longest line of text fits.
_MIN_WIDTH = 420
_HEAD = 78
_BAR_HEIGHT = 10
_INK = (24, 28, 36)
_PALE_INK = (96, 104, 118)
_PALE = (214, 219, 227)
_PAPER = (255, 255, 255)
_QUALITY = 80
_TOO_NEAR = 8
_EXACT_LABELS = 24


def step_groups(tokens: int) -> list[range]:
    """Return the steps of each frame, counted from 1.

    Args:
        tokens: number of clusters.
    """
    length = max(1, math.ceil(tokens / MAX_STEP_FRAMES))
    return [range(first, min(first + length, tokens + 1)) for first in range(1, tokens + 1, length)]


def draw_frames(result: ImageClusters) -> Iterator[tuple[Image.Image, int]]:
    """Draw the scope loop of one image, all frames of one size.

    Args:
        result: soft clusters of an image, in the order of the steps.

    Yields:
        Each frame with its time in milliseconds: the photograph, the scope after each step with
        the seeds of the step, and the cluster map. More than `MAX_STEP_FRAMES` steps are shown in
        `step_groups`.
    """
    size = fit(result.photo.size, (_PANEL, _PANEL))
    photo = result.photo.resize(size, Image.Resampling.LANCZOS)
    rows, columns = result.labels.shape
    patches = f"{rows} x {columns} patches"
    yield _frame(photo, "Photograph", f"{patches}, none of them claimed", 1.0), FIRST_TIME
    for group in step_groups(result.tokens):
        steps, scope = group[-1], float(scope_after(result, group[-1]).mean())
        drawn = draw_scope(result, steps, size, len(group))
        first, last = group[0] - 1, steps - 1
        if len(group) == 1:
            heading = f"Step {steps} of {result.tokens}"
            row, column = (int(index) for index in result.seeds[last])
            seeds = f"seed {last} in row {row}, column {column}"
        else:
            heading = f"Steps {group[0]} to {steps} of {result.tokens}"
            seeds = f"seeds {first} to {last}"
        yield _frame(drawn, heading, f"{seeds}; {scope:.1%} of the scope left", scope), STEP_TIME
    residual = result.residual_fraction
    facts = f"{patches}, residual {residual:.1%}"
    yield (
        _frame(draw_map(result, size), count(result.tokens, "cluster"), facts, residual),
        LAST_TIME,
    )


def save_animation(result: ImageClusters, path: Path) -> None:
    """Write the frames as an animation that loops.

    Args:
        result: soft clusters of an image.
        path: file whose name ends in one of the `FORMATS`.

    Raises:
        ValueError: the name has another ending.
        OSError: the file cannot be written.
    """
    if path.suffix not in {f".{name}" for name in FORMATS}:
        expected = " or ".join(f".{name}" for name in FORMATS)
        raise ValueError(f"path: expected a name that ends in {expected}, got {path.name!r}")
    frames, times = map(list, zip(*draw_frames(result), strict=True))
    if path.suffix == ".gif":
        # "optimize" makes pixels transparent that do not change.
        frames, options = (
            _with_one_palette(frames, result.tokens),
            {"optimize": True, "disposal": 1},
        )
    else:
        options = {"quality": _QUALITY, "method": 3}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0, **options)


def _frame(panel: Image.Image, heading: str, facts: str, scope: float) -> Image.Image:
    """Draw two lines of text and a bar of the mean scope above an image."""
    inner = max(panel.width, _MIN_WIDTH)
    top = _MARGIN + _HEAD
    canvas = Image.new("RGB", (inner + 2 * _MARGIN, top + panel.height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN - 6), heading, _INK, font(24))
    draw.text((_MARGIN, _MARGIN + 26), facts, _PALE_INK, font(16))
    bar_top, right = _MARGIN + 54, _MARGIN + inner - 1
    bar = (_MARGIN, bar_top, right, bar_top + _BAR_HEIGHT)
    draw.rectangle(bar, _PALE)
    if (length := round(scope * inner)) > 0:
        draw.rectangle((_MARGIN, bar_top, _MARGIN + length - 1, bar_top + _BAR_HEIGHT), _INK)
    canvas.paste(panel, (_MARGIN + (inner - panel.width) // 2, top))
    return canvas


def _with_one_palette(frames: list[Image.Image], tokens: int) -> list[Image.Image]:
    """Reduce frames to the same 255 colours, so that unchanged pixels stay equal.

    They fit the first frame, the middle one and the last. Those of text and bar, seeds and outlines
    are exact; of many clusters, those of the first, which cover the hues.
    """
    width, height = frames[0].size
    chosen = (frames[0], frames[len(frames) // 2], frames[-1])
    together = Image.new("RGB", (width, height * len(chosen)))
    for i, frame in enumerate(chosen):
        together.paste(frame, (0, i * height))
    # One colour is left for the transparency of unchanged pixels.
    labels = range(min(tokens, _EXACT_LABELS))
    outlines = [outline_colour(label) for label in labels]
    exact = np.array([_INK, _PALE_INK, _PALE, _PAPER, *map(colour, labels), *outlines])
    fitted = together.quantize(255 - len(exact), Image.Quantize.MEDIANCUT)
    colours = np.array(fitted.getpalette()).reshape(-1, 3)
    # PIL takes any of the colours next to a pixel's: beside the exact ones there may be no other.
    near = np.abs(colours[:, None] - exact).max(-1) <= _TOO_NEAR
    colours[near.any(1)] = exact[near.argmax(1)[near.any(1)]]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([exact, colours]).astype(np.uint8).tobytes())
    # Without dithering, whose noise would make every frame differ everywhere.
    return [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
