"""Figures of clusters, with PIL and numpy: cluster maps, one image, contact sheets."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from setokim.utils.file_names import printable_name
from setokim.utils.palette import colour, palette
from setokim.visualization.image_clusters import ImageClusters

_PANEL = 640
_MARGIN = 20
_INK = (24, 28, 36)
_PALE_INK = (96, 104, 118)
_PAPER = (255, 255, 255)
_BOUNDARY = (255, 255, 255)
_HATCH_WIDTH = 5
# Weight of a cluster's colour in the map; the rest is the photograph in grey, for orientation.
_TINT = 0.62
# Radius of a seed without its number, in pixels.
_DOT = 2.5
# PIL does not smooth circles: they are drawn larger by this factor and shrunk.
_OVERSAMPLING = 4


def draw_map(result: ImageClusters, size: tuple[int, int]) -> Image.Image:
    """Draw the clusters over the photograph in grey, with boundaries and numbered seeds.

    The number in a ring is the label of its cluster; seeds that it would cover are dots. The
    residual is hatched grey.

    Args:
        result: clusters of an image.
        size: width and height of the map.
    """
    labels, tokens = result.labels, result.tokens
    grey = result.photo.resize(size).convert("L")
    colours = np.vstack([palette(tokens), [[0, 0, 0]]]).astype(np.uint8)
    shades = enlarge(colours[labels], size)
    image = Image.blend(grey.convert("RGB"), shades, _TINT)
    residual = labels == tokens
    if residual.any():
        stripes = np.add.outer(np.arange(size[1]), np.arange(size[0])) // _HATCH_WIDTH % 2
        hatched = 110 + 70 * stripes + (np.asarray(grey, np.float32) - 128) * 0.3
        hatched_image = Image.fromarray(hatched.clip(0, 255).astype(np.uint8)).convert("RGB")
        image.paste(hatched_image, mask=enlarge(residual, size))
    image.paste(_BOUNDARY, mask=Image.fromarray(boundaries(labels, size)))
    draw_seeds(image, result, range(tokens))
    return image


def draw_figure(result: ImageClusters, encoder_name: str) -> Image.Image:
    """Draw the photograph beside its cluster map, under a title with the number of tokens.

    Args:
        result: clusters of an image.
        encoder_name: name of the encoder, for the subtitle.
    """
    panel = fit(result.photo.size, (_PANEL, _PANEL))
    title_font, small_font = font(30), font(16)
    facts = " · ".join(_facts(result, encoder_name))
    title = _title(result)
    text_width = max(title_font.getlength(title), small_font.getlength(facts))
    inner = max(2 * panel[0] + _MARGIN, math.ceil(text_width))
    top = _MARGIN + 72
    canvas = Image.new("RGB", (inner + 2 * _MARGIN, top + panel[1] + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN - 4), title, _INK, title_font)
    draw.text((_MARGIN, _MARGIN + 38), facts, _PALE_INK, small_font)
    canvas.paste(result.photo.resize(panel, Image.Resampling.LANCZOS), (_MARGIN, top))
    canvas.paste(draw_map(result, panel), (2 * _MARGIN + panel[0], top))
    return canvas


def draw_contact_sheet(
    results: Sequence[ImageClusters], columns: int = 4, cell: tuple[int, int] = (400, 320)
) -> Image.Image:
    """Draw all photographs, each above its cluster map, with their numbers of tokens.

    Args:
        results: clusters of at least one image.
        columns: max number of images side by side.
        cell: max width and height of a photograph.
    """
    columns = min(columns, len(results))
    caption, gap = 44, 6
    cell_height = caption + 2 * cell[1] + gap
    rows = math.ceil(len(results) / columns)
    size = (
        columns * (cell[0] + _MARGIN) + _MARGIN,
        rows * (cell_height + _MARGIN) + _MARGIN,
    )
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, result in enumerate(results):
        row, column = divmod(i, columns)
        left = _MARGIN + column * (cell[0] + _MARGIN)
        top = _MARGIN + row * (cell_height + _MARGIN)
        panel = fit(result.photo.size, cell)
        left += (cell[0] - panel[0]) // 2
        draw.text((left, top + 4), _title(result), _INK, font(24))
        photo = result.photo.resize(panel, Image.Resampling.LANCZOS)
        canvas.paste(photo, (left, top + caption))
        canvas.paste(draw_map(result, panel), (left, top + caption + panel[1] + gap))
    return canvas


def fit(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """Return the max width and height with the aspect ratio of `size` that fit into `box`."""
    scale = min(box[0] / size[0], box[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def enlarge(patches: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Draw each patch as a rectangle of its colour.

    Args:
        patches: (rows, columns, 3) uint8 colours, (rows, columns) uint8 greys or bools.
        size: width and height of the image.
    """
    height, width = patches.shape[:2]
    row_of = np.arange(size[1]) * height // size[1]
    column_of = np.arange(size[0]) * width // size[0]
    values = patches.astype(np.uint8) * 255 if patches.dtype == bool else patches
    return Image.fromarray(values[row_of][:, column_of])


def boundaries(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return (height, width) uint8, 255 on the two pixels at each boundary of two labels.

    Args:
        labels: (rows, columns), a label of each patch.
        size: width and height.
    """
    rows, columns = labels.shape
    row_of = np.arange(size[1]) * rows // size[1]
    column_of = np.arange(size[0]) * columns // size[0]
    large = labels[row_of][:, column_of]
    edge = np.zeros(large.shape, bool)
    across, down = large[:, 1:] != large[:, :-1], large[1:] != large[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge.astype(np.uint8) * 255


def draw_seeds(image: Image.Image, result: ImageClusters, labels: Sequence[int]) -> None:
    """Draw seeds on an image of any size: the label in a ring, or a dot.

    Args:
        image: image to draw on.
        result: clusters of the image.
        labels: clusters whose seeds are drawn. An earlier one has its number where two would
            cover each other, as a number of which a part is hidden reads as another one.
    """
    if not labels:
        return
    rows, columns = result.labels.shape
    scale = np.array([image.height / rows, image.width / columns])
    radius = min(max(0.5 * float(scale.min()), 9), 14)
    centres = (np.array([result.seeds[label] for label in labels]) + 0.5) * scale
    numbered = _with_room(centres, 2 * radius)
    # Dots first: of the two, the numbers must stay whole.
    for has_number in (False, True):
        for label, centre, own in zip(labels, centres, numbered, strict=True):
            if own == has_number:
                sign = _seed_sign(label, radius) if own else _seed_dot(label)
                x, y = round(centre[1] - sign.width / 2), round(centre[0] - sign.height / 2)
                image.paste(sign, (x, y), sign)


def _with_room(centres: np.ndarray, apart: float) -> list[bool]:
    """Return whether each point is this far from all earlier ones that are; `centres` is (N, 2)."""
    kept, found = np.empty((0, 2)), []
    for centre in centres:
        # Neighbours of a square grid touch; rounding must not part them.
        found.append(bool((np.hypot(*(kept - centre).T) > apart - 0.5).all()))
        if found[-1]:
            kept = np.vstack([kept, centre])
    return found


@functools.lru_cache(maxsize=4096)
def _seed_sign(label: int, radius: float) -> Image.Image:
    """Draw a numbered disc with a light and a dark ring, RGBA."""
    sign, draw = _disc(label, radius)
    red, green, blue = colour(label)
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    ink = _INK if is_light else _PAPER
    text = str(label)
    # Three digits are smaller, so that they stay within the disc.
    size = min(1.25, 3.2 / len(text)) * radius * _OVERSAMPLING
    draw.text((sign.width / 2, sign.height / 2), text, ink, font(size), anchor="mm")
    return _shrunk(sign)


@functools.lru_cache(maxsize=4096)
def _seed_dot(label: int) -> Image.Image:
    """Draw a small disc with the same rings, RGBA."""
    return _shrunk(_disc(label, _DOT)[0])


def _disc(label: int, radius: float) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    side = 2 * math.ceil(radius + 2) * _OVERSAMPLING
    sign = Image.new("RGBA", (side, side), (*_INK, 0))
    draw = ImageDraw.Draw(sign)
    fills = (_INK, _PAPER, colour(label))
    for grown, fill in zip((2, 1, 0), fills, strict=True):
        draw.circle((side / 2, side / 2), (radius + grown) * _OVERSAMPLING, fill=fill)
    return sign, draw


def _shrunk(sign: Image.Image) -> Image.Image:
    return sign.resize((sign.width // _OVERSAMPLING,) * 2, Image.Resampling.LANCZOS)


def _title(result: ImageClusters) -> str:
    return f"{printable_name(result.name)}: {count(result.tokens, 'token')}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _facts(result: ImageClusters, encoder_name: str) -> list[str]:
    rows, columns = result.labels.shape
    return [
        count(result.distinct_labels, "distinct label"),
        f"residual {result.residual_fraction:.1%}",
        f"{rows} x {columns} patches",
        encoder_name,
    ]


@functools.lru_cache(maxsize=64)
def font(size: float) -> ImageFont.FreeTypeFont:
    """Return the font of all figures."""
    return ImageFont.load_default(size=size)
