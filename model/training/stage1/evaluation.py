"""Held-out metrics of stage 1."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from setokim.data import Dataset, Sample
from setokim.evaluation import metrics
from setokim.tokenizer.modeling_setok import VisualTokens
from setokim.training.stage import Collate
from setokim.training.stage1.losses import LossSettings

# Samples, their collated tensors, their visual tokens, and images (B, 3, h, w) from these.
Reconstructed: TypeAlias = tuple[Sequence[Sample], dict[str, Tensor], VisualTokens, Tensor]


class Evaluated(Protocol):
    """Interface of stage 1 that its metrics need."""

    losses: LossSettings
    setok: nn.Module

    def similarity(self, tokens: Tensor, occupied: Tensor, text_ids: Tensor) -> Tensor:
        """Return the similarity of each image and each text."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters; the first one is on the device of the stage."""


def evaluate(
    stage: Evaluated, collate: Collate, held_out: Dataset, batch_size: int
) -> dict[str, float | None]:
    """Measure reconstruction, clusters against true objects, and retrieval on a data set.

    Args:
        stage: stage 1, in training or evaluation mode: it has no dropout.
        collate: collate function of the stage.
        held_out: samples that the stage is not trained on.
        batch_size: number of samples in a batch.

    Returns:
        Metrics by name. `psnr` is in dB. `sharpness` is the ratio of the reconstructions to the
        images. `tokens` is the mean number of tokens of an image. With texts, `recall_at_1` and
        `recall_at_1_chance` measure the retrieval of an image's text among all texts. With true
        masks there are `fg_ari`, `best_overlap_iou` and `token_object_correlation` (Pearson
        correlation of both counts). A metric that is not finite is None, because JSON has no such
        number: the correlation if all counts of one kind are equal, the PSNR of an exact
        reconstruction.
    """
    psnr, sharpness, token_counts, object_counts, ari, overlap = [], [], [], [], [], []
    visual_sets, text_ids = [], []
    for samples, batch, visual, image in reconstructed(stage, collate, held_out, batch_size):
        target = batch["target"]
        psnr += metrics.psnr(image.clamp(0, 1), target).tolist()
        sharpness.append(metrics.sharpness(image.clamp(0, 1), target))
        counts = visual.occupied.sum(1).tolist()
        token_counts += counts
        labels = visual.labels.unflatten(1, visual.grid).cpu()  # (B, h, w)
        for sample, own in zip(samples, labels, strict=True):
            if sample.masks is None:
                continue
            truth = torch.from_numpy(sample.masks)[None]
            predicted = metrics.upsample_labels(own[None], tuple(truth.shape[1:]))
            object_counts.append(len(truth[truth > 0].unique()))
            ari.append(metrics.adjusted_rand_index(predicted, truth, truth > 0))
            overlap.append(metrics.best_overlap_iou(predicted, truth))
        visual_sets.append((visual.tokens, visual.occupied))
        text_ids.append(batch["words"])
    values = {"psnr": statistics.fmean(psnr), "tokens": statistics.fmean(token_counts)}
    values["sharpness"] = float(torch.cat(sharpness).nanmean())
    if ari:
        values["fg_ari"] = float(torch.cat(ari).nanmean())
        values["best_overlap_iou"] = float(torch.cat(overlap).nanmean())
        if len(object_counts) == len(token_counts):
            counts = (torch.tensor(c, dtype=torch.float64) for c in (token_counts, object_counts))
            values["token_object_correlation"] = float(metrics.pearson_correlation(*counts))
    if stage.losses.contrastive and any(bool((ids > 0).any()) for ids in text_ids):
        similarity = _all_pairs(stage, visual_sets, text_ids)
        values["recall_at_1"] = metrics.recall_at_k(similarity, 1)
        values["recall_at_1_chance"] = 1 / similarity.shape[0]
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


@torch.no_grad()
def reconstructed(
    stage: Evaluated, collate: Collate, dataset: Dataset, batch_size: int
) -> Iterator[Reconstructed]:
    """Yield each batch of a data set with its visual tokens and reconstructed images."""
    device = next(stage.parameters()).device
    for start in range(0, len(dataset), batch_size):
        samples = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        batch = {name: value.to(device) for name, value in collate(samples).items()}
        visual, image = stage.setok(batch["pixels"])
        yield samples, batch, visual, image.float()


@torch.no_grad()
def _all_pairs(
    stage: Evaluated, visual_sets: list[tuple[Tensor, Tensor]], text_ids: list[Tensor]
) -> Tensor:
    """Return the (n, n) similarities of all images and all texts."""
    return torch.cat(
        [torch.cat([stage.similarity(*own, ids) for ids in text_ids], 1) for own in visual_sets]
    )
