"""Maps over the patches of an image: one mask, the scope after a step, a statistic."""

from __future__ import annotations

import numpy as np
from PIL import Image

from setokim.utils.palette import colour
from setokim.visualization.cluster_maps import boundaries, draw_seeds, enlarge
from setokim.visualization.image_clusters import ImageClusters

# Brightness of what a mask or the scope leaves out.
_DIM = 0.14
# Colours from the lowest to the highest value, of rising lightness also in grey print.
RAMP = np.array(
    [(20, 14, 54), (58, 32, 120), (44, 90, 160), (34, 142, 140), (104, 190, 88), (252, 232, 60)],
    np.float64,
)


def scope_after(result: ImageClusters, steps: int) -> np.ndarray:
    """Return the scope after some steps of Algorithm 1: what no cluster has claimed so far.

    Args:
        result: clusters of an image.
        steps: number of steps, from 0 to the number of clusters.

    Returns:
        (rows, columns) in [0, 1]; 1 before the first step. Hard clusters count as claimed one
        after the other.
    """
    return (1 - result.masks[:steps].sum(0)).clip(0, 1)


def draw_mask(result: ImageClusters, label: int, size: tuple[int, int]) -> Image.Image:
    """Draw the photograph as bright as the mask of one cluster, with its seed.

    Args:
        result: clusters of an image.
        label: row of the mask; the number of clusters for the residual.
        size: width and height of the map.
    """
    image = _lit(result.photo, result.masks[label], size)
    if label < result.tokens:
        draw_seeds(image, result, [label])
    return image


def draw_scope(
    result: ImageClusters, steps: int, size: tuple[int, int], shown: int = 1
) -> Image.Image:
    """Draw the photograph as bright as the scope, and the last seeds with their patches' outlines.

    Args:
        result: clusters of an image.
        steps: number of steps, from 0 to the number of clusters.
        size: width and height of the map.
        shown: number of last steps whose seeds are drawn, at least 1.
    """
    image = _lit(result.photo, scope_after(result, steps), size)
    latest = range(max(0, steps - shown), steps)
    for label in latest:
        outline = boundaries(result.labels == label, size)
        image.paste(outline_colour(label), mask=Image.fromarray(outline))
    draw_seeds(image, result, latest)
    return image


def draw_values(values: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Draw a statistic of the patches, from dark blue for the min to yellow for the max.

    Args:
        values: (rows, columns) float, finite.
        size: width and height of the map.
    """
    low, high = float(values.min()), float(values.max())
    place = (values - low) / ((high - low) or 1.0) * (len(RAMP) - 1)
    colours = [np.interp(place, np.arange(len(RAMP)), channel) for channel in RAMP.T]
    return enlarge(np.stack(colours, -1).round().astype(np.uint8), size)


def outline_colour(label: int) -> tuple[int, ...]:
    """Return the colour of a label, half white: the darker ones would vanish on dark patches."""
    return tuple((channel + 255) // 2 for channel in colour(label))


def _lit(photo: Image.Image, light: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Draw a photograph with the brightness of each patch, 0 to 1."""
    small = photo.resize(size)
    levels = enlarge((light * 255).round().clip(0, 255).astype(np.uint8), size)
    return Image.composite(small, small.point(lambda value: value * _DIM), levels)
