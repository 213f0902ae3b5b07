"""Figures of clusters, with PIL and numpy: cluster maps, one image, contact sheets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from setokim.cli.image_clusters import ImageClusters
from setokim.utils.file_names import printable_name
from setokim.utils.palette import palette

_PANEL = 640
_MARGIN = 20
_INK = (24, 28, 36)
_PALE_INK = (96, 104, 118)
_PAPER = (255, 255, 255)
_BOUNDARY = (255, 255, 255)
_HATCH_WIDTH = 5
# Weight of a cluster's colour in the map; the rest is the photograph in grey, for orientation.
_TINT = 0.62
# Lines and rings are drawn larger by this factor and shrunk: PIL does not smooth them.
_OVERSAMPLING = 2


def draw_map(result: ImageClusters, size: tuple[int, int]) -> Image.Image:
    """Draw the clusters over the photograph in grey, with boundaries and numbered seeds.

    The number in a ring is the label of its cluster. The residual is hatched grey.

    Args:
        result: clusters of an image.
        size: width and height of the map.
    """
    width, height = (side * _OVERSAMPLING for side in size)
    rows, columns = result.labels.shape
    row_of = np.arange(height) * rows // height
    column_of = np.arange(width) * columns // width
    labels = result.labels[row_of[:, None], column_of[None, :]]  # (height, width)

    grey = np.asarray(result.photo.convert("L").resize((width, height)), np.float32)[..., None]
    colours = np.vstack([palette(result.tokens), [[0, 0, 0]]]).astype(np.float32)
    shades = colours[labels] * _TINT + grey * (1 - _TINT)  # (height, width, 3)
    residual = labels == result.tokens
    stripes = (np.add.outer(np.arange(height), np.arange(width)) // _HATCH_WIDTH) % 2
    hatched = 110 + 70 * stripes[..., None] + (grey - 128) * 0.3
    shades = np.where(residual[..., None], hatched, shades)

    boundary = np.zeros((height, width), bool)
    boundary[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    boundary[1:] |= labels[1:] != labels[:-1]
    shades[_widen(boundary)] = _BOUNDARY

    image = Image.fromarray(shades.clip(0, 255).astype(np.uint8))
    _draw_seeds(image, result)
    return image.resize(size, Image.Resampling.LANCZOS)


def draw_figure(result: ImageClusters, encoder_name: str) -> Image.Image:
    """Draw the photograph beside its cluster map, under a title with the number of tokens.

    Args:
        result: clusters of an image.
        encoder_name: name of the encoder, for the subtitle.
    """
    panel = fit(result.photo.size, (_PANEL, _PANEL))
    title_font, small_font = _font(30), _font(16)
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
        draw.text((left, top + 4), _title(result), _INK, _font(24))
        photo = result.photo.resize(panel, Image.Resampling.LANCZOS)
        canvas.paste(photo, (left, top + caption))
        canvas.paste(draw_map(result, panel), (left, top + caption + panel[1] + gap))
    return canvas


def fit(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """Return the max width and height with the aspect ratio of `size` that fit into `box`."""
    scale = min(box[0] / size[0], box[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _widen(edge: np.ndarray) -> np.ndarray:
    """Grow a boolean image by one pixel in all directions."""
    grown = Image.fromarray(edge.astype(np.uint8)).filter(ImageFilter.MaxFilter(3))
    return np.asarray(grown).astype(bool)


def _draw_seeds(image: Image.Image, result: ImageClusters) -> None:
    draw = ImageDraw.Draw(image)
    rows, columns = result.labels.shape
    patch = min(image.width / columns, image.height / rows)
    radius = min(max(0.5 * patch, 9 * _OVERSAMPLING), 14 * _OVERSAMPLING)
    font = _font(1.25 * radius)
    colours = palette(result.tokens)
    # Backwards, so that where seeds meet the earlier one lies on top.
    for label in range(result.tokens - 1, -1, -1):
        row, column = result.seeds[label]
        x = (column + 0.5) * image.width / columns
        y = (row + 0.5) * image.height / rows
        colour = tuple(int(c) for c in colours[label])
        for grown, fill in ((2 * _OVERSAMPLING, _INK), (_OVERSAMPLING, _PAPER), (0, colour)):
            r = radius + grown
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        is_light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
        draw.text((x, y), str(label), _INK if is_light else _PAPER, font, anchor="mm")


def _title(result: ImageClusters) -> str:
    return f"{printable_name(result.name)}: {_count(result.tokens, 'token')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _facts(result: ImageClusters, encoder_name: str) -> list[str]:
    rows, columns = result.labels.shape
    return [
        _count(result.distinct_labels, "distinct label"),
        f"residual {result.residual_fraction:.1%}",
        f"{rows} x {columns} patches",
        encoder_name,
    ]


def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)
