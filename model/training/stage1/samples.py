"""Image sheets of stage 1: reconstructions and clusters."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from setokim.training.stage1.evaluation import Reconstructed
from setokim.utils.palette import palette

_CELL = 128
_GAP = 4
SHEET_SAMPLES = 12


def write_samples(batches: Iterable[Reconstructed], path: Path) -> None:
    """Write an image sheet of the first samples.

    Each column has the image, its reconstruction, its clusters and, if known, its true masks.

    Args:
        batches: batches of samples with their reconstructions; only the first is used.
        path: path of the PNG; its folder is created.
    """
    samples, batch, visual, images = next(iter(batches))
    columns = []
    labels = visual.labels.unflatten(1, visual.grid).cpu().numpy()
    rows = zip(samples, batch["target"], images.clamp(0, 1), labels, strict=True)
    for sample, target, image, own in rows:
        cells = [_to_image(target), _to_image(image), _label_map(own)]
        if sample.masks is not None:
            cells.append(_label_map(sample.masks))
        columns.append(cells)
    height = max(map(len, columns))
    side = _CELL + _GAP
    sheet = Image.new("RGB", (side * len(columns) + _GAP, side * height + _GAP), "white")
    for x, cells in enumerate(columns):
        for y, cell in enumerate(cells):
            cell = cell.resize((_CELL, _CELL), Image.Resampling.NEAREST)
            sheet.paste(cell, (_GAP + side * x, _GAP + side * y))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _to_image(image: Tensor) -> Image.Image:
    pixels = (image.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(pixels)


def _label_map(labels: np.ndarray) -> Image.Image:
    return Image.fromarray(palette(int(labels.max()) + 1)[labels])
