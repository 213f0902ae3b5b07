"""Held-out figures of stage 1."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from setokim.data import Dataset, Sample
from setokim.evaluation import metrics
from setokim.tokenizer.modeling_setok import VisualTokens

# Stage 1 calls these functions.
if TYPE_CHECKING:
    from setokim.training.stage1.stage import Stage1, Stage1Collator


def evaluate(
    stage: Stage1, collate: Stage1Collator, held_out: Dataset, batch_size: int
) -> dict[str, float | None]:
    """Reconstruction, clusters against true objects, and retrieval, over all of a data set.

    Args:
        stage: in evaluation mode or not; it has no layers that care.
        collate: of its batches.
        held_out: samples it was not trained on.
        batch_size: samples at once.

    Returns:
        `psnr` in dB; `sharpness`, of what is drawn over that of the pictures; `tokens`, the mean
        number; where there are texts `recall_at_1` and `recall_at_1_chance`, of finding a picture's
        text among all. With true masks also `fg_ari`, `best_overlap_iou`, and
        `token_object_correlation` (Pearson, of the numbers of both). None for what is no finite
        number, which JSON cannot hold: the correlation where one of the numbers is the same
        throughout, the PSNR where a picture is right in every bit.
    """
    psnr, sharpness, token_counts, object_counts, ari, overlap = [], [], [], [], [], []
    images, words = [], []
    for samples, batch, visual, picture in drawn(stage, collate, held_out, batch_size):
        target = batch["target"]
        psnr += metrics.psnr(picture.clamp(0, 1), target).tolist()
        sharpness.append(metrics.sharpness(picture.clamp(0, 1), target))
        counts = visual.occupied.sum(1).tolist()
        token_counts += counts
        labels = visual.labels.unflatten(1, visual.grid).cpu()  # (B, h, w)
        for sample, own in zip(samples, labels, strict=True):
            if sample.masks is None:
                continue
            truth = torch.from_numpy(sample.masks)[None]
            spread = metrics.upsample_labels(own[None], tuple(truth.shape[1:]))
            object_counts.append(len(truth[truth > 0].unique()))
            ari.append(metrics.adjusted_rand_index(spread, truth, truth > 0))
            overlap.append(metrics.best_overlap_iou(spread, truth))
        images.append((visual.tokens, visual.occupied))
        words.append(batch["words"])
    found = {"psnr": statistics.fmean(psnr), "tokens": statistics.fmean(token_counts)}
    found["sharpness"] = float(torch.cat(sharpness).nanmean())
    if ari:
        found["fg_ari"] = float(torch.cat(ari).nanmean())
        found["best_overlap_iou"] = float(torch.cat(overlap).nanmean())
        if len(object_counts) == len(token_counts):
            counts = (torch.tensor(c, dtype=torch.float64) for c in (token_counts, object_counts))
            found["token_object_correlation"] = float(metrics.pearson_correlation(*counts))
    if stage.losses.contrastive and any(bool((w > 0).any()) for w in words):
        similarity = _all_pairs(stage, images, words)
        found["recall_at_1"] = metrics.recall_at_k(similarity, 1)
        found["recall_at_1_chance"] = 1 / similarity.shape[0]
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


@torch.no_grad()
def drawn(
    stage: Stage1, collate: Stage1Collator, dataset: Dataset, batch_size: int
) -> Iterator[tuple[Sequence[Sample], dict[str, Tensor], VisualTokens, Tensor]]:
    """Each batch of a data set with its tokens and the pictures drawn from them."""
    device = next(stage.parameters()).device
    for start in range(0, len(dataset), batch_size):
        samples = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        batch = {name: value.to(device) for name, value in collate(samples).items()}
        visual, picture = stage.setok(batch["pixels"])
        yield samples, batch, visual, picture.float()


@torch.no_grad()
def _all_pairs(stage: Stage1, images: list[tuple[Tensor, Tensor]], words: list[Tensor]) -> Tensor:
    """(n, n) similarities of all images and all texts."""
    return torch.cat(
        [torch.cat([stage.similarity(*image, ids) for ids in words], 1) for image in images]
    )
