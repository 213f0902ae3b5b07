"""Agreement of clusters with true object masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from setokim.data import Dataset, Sample
from setokim.evaluation.figures import Figures
from setokim.evaluation.metrics import best_overlap_iou, pearson_correlation, upsample_labels
from setokim.evaluation.readable import read_samples
from setokim.tokenizer.modeling_setok import SetokModel

_BATCH_SIZE = 16
_MIOU = "mean over images of the mean over objects of the IoU with the best cluster"


@torch.no_grad()
def cluster_metrics(
    setok: SetokModel,
    dataset: Dataset,
    number: int,
    show: Callable[[int], None] = lambda number: None,
) -> Figures:
    """Compute the overlap of the clusters of images with the true masks.

    Args:
        setok: model in evaluation mode.
        dataset: images with masks.
        number: number of samples, from the beginning.
        show: callback with the number of samples read so far.

    Returns:
        `miou`, the mean over images with objects of the mean over objects of the intersection over
        union with the best cluster; `tokens`, the mean number of tokens;
        `token_object_correlation`, Pearson's correlation over the images of the number of tokens
        with that of objects, unless one of them is constant; `samples`, the number of images used;
        and `broken`, the number of samples that could not be read or have fewer pixels than
        patches.
    """
    overlaps: list[float] = []
    counts: list[int] = []
    units: list[str] = []
    objects: list[int] = []
    broken = 0
    waiting: list[Sample] = []

    def measure() -> None:
        visual = setok.tokenize(setok.preprocess([one.image for one in waiting]))
        counts.extend(visual.occupied.sum(1).tolist())
        labels = visual.labels.unflatten(1, visual.grid).cpu()
        for one, own in zip(waiting, labels, strict=True):
            truth = torch.from_numpy(one.masks)[None]
            objects.append(int((truth.unique() > 0).sum()))
            spread = upsample_labels(own[None], tuple(truth.shape[1:]))
            overlaps.extend(best_overlap_iou(spread, truth).tolist())
        waiting.clear()

    for index, sample in enumerate(read_samples(dataset, number, show)):
        if sample is None or not _fits(sample, setok.config.grid):
            broken += 1
            continue
        waiting.append(sample)
        units.append(str(index))
        if len(waiting) == _BATCH_SIZE:
            measure()
    if waiting:
        measure()
    found = Figures()
    table = found.table(units, "image")
    known = [not math.isnan(value) for value in overlaps]
    if any(known):
        table.mean("miou", overlaps, _MIOU, known)
    if counts:
        table.mean("tokens", counts, "mean number of tokens of an image")
        alike = float(pearson_correlation(torch.tensor(counts), torch.tensor(objects)))
        if not math.isnan(alike):
            rule = "Pearson's correlation of the numbers of tokens and of objects"
            table.correlation("token_object_correlation", alike, counts, objects, rule)
    found.constant("samples", len(counts), "images that count")
    found.constant("broken", broken, "samples that cannot be read, or are smaller than the grid")
    return found


def _fits(sample: Sample, grid: Sequence[int]) -> bool:
    """Return whether a sample has at least as many pixels as patches in height and width."""
    return all(pixels >= cells for pixels, cells in zip(sample.masks.shape, grid, strict=True))
