"""Figures of clusters for notebooks, with matplotlib."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from setok_kernels import Clusters, HardClusters
from setok_kernels.images import image_number
from setokim.data.image_processing import load_image, to_image, to_rgb
from setokim.utils.palette import palette
from setokim.visualization.cluster_maps import count, draw_map, fit
from setokim.visualization.image_clusters import TOKEN_VALUES, ImageClusters, to_host
from setokim.visualization.patch_maps import RAMP, draw_scope, scope_after

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VIEWS = ("photograph", "clusters", "scope", *TOKEN_VALUES, "sizes")
_TITLES = {"density": "density (Eq. 1)", "delta": "seed distance (Eq. 2)", "score": "score"}
# Pixels of the longer side of a drawn map: few enough that the numbers of seeds can be read.
_PANEL = 480
_COLUMNS = 4
# Side of the square of a panel's area, and height of its title.
_INCHES, _TITLE_INCHES = 3.4, 0.4
# Aspect ratios beyond it get no wider or taller panel.
_MAX_ASPECT = 2.5
_SCOPE_PANELS = 4


def plot(
    image: str | Path | Image.Image | np.ndarray | Tensor,
    clusters: Clusters | HardClusters,
    *,
    index: int = 0,
    views: Sequence[str] = ("photograph", "clusters"),
    grid: tuple[int, int] | None = None,
    steps: Sequence[int] | None = None,
) -> Figure:
    """Draw the clusters of an image as a matplotlib figure.

    A notebook shows the figure as the value of a cell; `figure.savefig` writes it to a file. It is
    no figure of pyplot, so it needs no `show` and no `close`.

    Args:
        image: the clustered image: file, PIL image, (H, W, 3) uint8 array or (3, H, W)
            floating-point tensor in [0, 1].
        clusters: result of `cluster_tokens`, `dpc_knn` or `threshold_greedy` for images on a grid,
            on any device.
        index: index of the image in the batch; negative ones count from the end.
        views: panels in their order. "photograph"; "clusters", the map with boundaries and numbered
            seeds, the residual hatched; "scope", what is unclaimed after some steps of
            Algorithm 1; "density", "delta" and "score", the statistics of the patches; "sizes",
            the number of patches of each cluster. Only `cluster_tokens` has a scope;
            `threshold_greedy` has no statistics.
        grid: rows and columns of the tokens, for the result of (B, N, D) tokens, which has no grid.
        steps: numbers of steps after which "scope" shows it; None for four of them up to the last.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UnreadableImageError: the file cannot be read.
        TypeError, ValueError, IndexError: an argument does not fit; the message names it.
    """
    from setokim.visualization.notebook_figure import NotebookFigure

    result = _on_host(_photo(image), clusters, index, grid)
    shown = _checked_views(views, clusters)
    chosen = _checked_steps(steps, result, shown)
    panels = [panel for view in shown for panel in _panels(view, result, chosen)]
    columns = min(len(panels), _COLUMNS)
    rows = math.ceil(len(panels) / columns)
    aspect = result.photo.width / result.photo.height
    aspect = min(max(aspect, 1 / _MAX_ASPECT), _MAX_ASPECT)
    width, height = _INCHES * aspect**0.5, _INCHES / aspect**0.5 + _TITLE_INCHES
    figure = NotebookFigure(figsize=(columns * width, rows * height), layout="compressed")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for one, draw in zip(axes, panels, strict=False):
        draw(one)
    for one in axes[len(panels) :]:
        one.axis("off")
    return figure


def _panels(view: str, result: ImageClusters, steps: Sequence[int]) -> list[Callable[[Axes], None]]:
    """Return what draws the panels of a view."""
    size = fit(result.photo.size, (_PANEL, _PANEL))
    if view == "photograph":
        return [lambda axes: _show(axes, result.photo.resize(size), "photograph")]
    if view == "clusters":
        title, residual = count(result.tokens, "cluster"), result.residual_fraction
        if residual > 0:
            title += f", residual {residual:.1%}"
        return [lambda axes: _show(axes, draw_map(result, size), title)]
    if view == "scope":
        return [functools.partial(_draw_scope, result=result, steps=done) for done in steps]
    if view == "sizes":
        return [lambda axes: _draw_sizes(axes, result)]
    return [lambda axes: _draw_values(axes, result.values[view], result.photo.size, _TITLES[view])]


def _show(axes: Axes, image: Image.Image, title: str) -> None:
    axes.imshow(image)
    axes.set_title(title)
    axes.axis("off")


def _draw_scope(axes: Axes, result: ImageClusters, steps: int) -> None:
    drawn = draw_scope(result, steps, fit(result.photo.size, (_PANEL, _PANEL)))
    left = float(scope_after(result, steps).mean())
    _show(axes, drawn, f"{left:.1%} left after {count(steps, 'step')}")


def _draw_values(axes: Axes, values: np.ndarray, size: tuple[int, int], title: str) -> None:
    """Draw a statistic of the patches, stretched to the shape of the image, with a colour bar."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("setok", list(RAMP / 255))
    width, height = size
    drawn = axes.imshow(
        values, colours, interpolation="nearest", extent=(0, width, height, 0), aspect="equal"
    )
    axes.figure.colorbar(drawn, ax=axes, shrink=0.8)
    axes.set_title(title)
    axes.axis("off")


def _draw_sizes(axes: Axes, result: ImageClusters) -> None:
    """Draw the number of patches of each cluster as bars in its colour, the residual hatched."""
    from matplotlib.ticker import MaxNLocator

    tokens, sizes = result.tokens, result.sizes
    axes.bar(np.arange(tokens), sizes[:tokens], color=palette(tokens) / 255)
    if sizes[tokens]:
        axes.bar([tokens], sizes[tokens:], color="0.7", hatch="///", label="residual")
        axes.legend()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(title="patches of each cluster", xlabel="cluster", ylabel="patches")


def _photo(image: Any) -> Image.Image:
    """Return an image of any form as RGB."""
    if isinstance(image, (str, Path)):
        return load_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, Tensor):
        return _image_of_tensor(image)
    if not isinstance(image, np.ndarray):
        expected = "a file, a PIL image, an array or a tensor"
        raise TypeError(f"image: expected {expected}, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        got = f"shape {image.shape}, {image.dtype}"
        raise ValueError(f"image: expected an array (H, W, 3) of uint8, got {got}")
    return Image.fromarray(image)


def _image_of_tensor(image: Tensor) -> Image.Image:
    floating = image.is_floating_point() and image.numel() > 0
    if not floating or image.dim() != 3 or image.shape[0] != 3:
        got = f"shape {tuple(image.shape)}, {image.dtype}"
        raise ValueError(f"image: expected a floating-point tensor (3, H, W), got {got}")
    pixels = image.detach().float()
    # No comparison with NaN is true.
    if not bool(((pixels >= 0) & (pixels <= 1)).all()):
        low, high = (float(value) for value in pixels.aminmax())
        raise ValueError(f"image: expected values in [0, 1], got {low:.3g} to {high:.3g}")
    return to_image(pixels)


def _on_host(
    photo: Image.Image, clusters: Any, index: int, grid: tuple[int, int] | None
) -> ImageClusters:
    """Return the clusters of one image of a batch."""
    if not isinstance(clusters, (Clusters, HardClusters)):
        expected = "a result of cluster_tokens, dpc_knn or threshold_greedy"
        raise TypeError(f"clusters: expected {expected}, got {type(clusters).__name__}")
    if clusters.cu_seqlens is not None:
        raise ValueError("clusters: expected padded images on one grid, got a packed result")
    number = image_number(index, len(clusters))
    one = dataclasses.replace(clusters[number], grid=_checked_grid(clusters, grid))
    return ImageClusters(source=None, name="image", photo=photo, **to_host(one)[0])


def _checked_grid(
    clusters: Clusters | HardClusters, grid: tuple[int, int] | None
) -> tuple[int, int]:
    own, tokens = clusters.grid, clusters.labels.shape[1]
    if own is not None and len(own) != 2:
        raise ValueError(f"clusters: expected a grid (rows, columns), got {own} of a video")
    if grid is None:
        if own is None:
            expected = f"rows and columns of the {tokens} tokens"
            raise ValueError(f"grid: expected {expected}, got None for a result without a grid")
        return own
    expected = f"rows and columns of {tokens} tokens" if own is None else f"{own} of the clusters"
    try:
        rows, columns = (operator.index(side) for side in grid)
    except (TypeError, ValueError):
        raise ValueError(f"grid: expected {expected}, got {grid!r}") from None
    if rows < 1 or columns < 1 or rows * columns != tokens or own not in (None, (rows, columns)):
        raise ValueError(f"grid: expected {expected}, got {grid!r}")
    return rows, columns


def _checked_views(views: Any, clusters: Clusters | HardClusters) -> list[str]:
    able = [
        view
        for view in VIEWS
        if view in ("photograph", "clusters", "sizes")
        or (isinstance(clusters, Clusters) if view == "scope" else hasattr(clusters, view))
    ]
    shown = [views] if isinstance(views, str) else views
    if not isinstance(shown, Sequence) or not shown or any(view not in able for view in shown):
        kind = type(clusters).__name__
        raise ValueError(f"views: expected some of {', '.join(able)} for {kind}, got {views!r}")
    return list(shown)


def _checked_steps(
    steps: Sequence[int] | None, result: ImageClusters, views: Sequence[str]
) -> Sequence[int]:
    last = result.tokens
    if steps is None:
        return sorted({math.ceil(last * i / _SCOPE_PANELS) for i in range(1, _SCOPE_PANELS + 1)})
    if "scope" not in views:
        raise ValueError(f"steps: expected None without the view 'scope', got {steps!r}")
    try:
        chosen = [operator.index(one) for one in steps]
    except TypeError:
        chosen = []
    if not chosen or min(chosen) < 0 or max(chosen) > last:
        raise ValueError(f"steps: expected numbers from 0 to {last}, got {steps!r}")
    return chosen
