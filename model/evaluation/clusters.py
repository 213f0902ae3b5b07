"""Agreement of clusters with true object masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

import torch

from setokim.data import BrokenSampleError, Dataset, Sample
from setokim.evaluation.metrics import best_overlap_iou, upsample_labels
from setokim.tokenizer.modeling_setok import SetokModel

_BATCH_SIZE = 16


@torch.no_grad()
def cluster_metrics(
    setok: SetokModel,
    dataset: Dataset,
    number: int,
    show: Callable[[int], None] = lambda number: None,
) -> dict[str, float]:
    """Compute the overlap of the clusters of images with the true masks.

    Args:
        setok: model in evaluation mode.
        dataset: images with masks.
        number: number of samples, from the beginning.
        show: callback with the number of samples read so far.

    Returns:
        `miou`, the mean over images with objects of the mean over objects of the intersection over
        union with the best cluster; `tokens`, the mean number of tokens; `samples`, the number of
        images used; and `broken`, the number of samples that could not be read or have fewer pixels
        than patches.
    """
    overlaps: list[float] = []
    counts: list[int] = []
    broken = 0
    waiting: list[Sample] = []
    for index in range(number):
        try:
            sample = dataset[index]
        except BrokenSampleError:
            broken += 1
        else:
            sides = zip(sample.masks.shape, setok.config.grid, strict=True)
            if all(pixels >= patches for pixels, patches in sides):
                waiting.append(sample)
            else:
                broken += 1
        if waiting and (len(waiting) == _BATCH_SIZE or index == number - 1):
            visual = setok.tokenize(setok.preprocess([one.image for one in waiting]))
            counts += visual.occupied.sum(1).tolist()
            labels = visual.labels.unflatten(1, visual.grid).cpu()
            for one, own in zip(waiting, labels, strict=True):
                truth = torch.from_numpy(one.masks)[None]
                spread = upsample_labels(own[None], tuple(truth.shape[1:]))
                overlaps += best_overlap_iou(spread, truth).tolist()
            waiting = []
        show(index + 1)
    known = [value for value in overlaps if not math.isnan(value)]
    metrics = {"miou": fmean(known)} if known else {}
    if counts:
        metrics["tokens"] = fmean(counts)
    return metrics | {"samples": len(counts), "broken": broken}
