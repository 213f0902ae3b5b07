"""Clusters of images on the host, computed by an encoder and a clustering function."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from setok_kernels import Clusters, HardClusters
from setokim.tokenizer.encoders import VisionEncoder
from setokim.visualization.functions import Config, cluster

# Statistics of each token that a clustering may have, by their name in it.
TOKEN_VALUES = ("density", "delta", "score")


@dataclass(frozen=True)
class Method:
    """An encoder and the options of the clustering of its features.

    Attributes:
        encoder: vision encoder.
        encoder_name: name of the encoder on the command line.
        config: options of the clustering.
        backend: backend of the clustering.
        device: name of the device of encoder and clustering.
    """

    encoder: VisionEncoder
    encoder_name: str
    config: Config
    backend: str = "auto"
    device: str = "cpu"


@dataclass(frozen=True)
class ImageClusters:
    """An image and its clusters, on the host.

    Attributes:
        source: file of the image.
        name: stem of the files of its results.
        photo: image, RGB and upright.
        labels: (rows, columns) int, cluster of each patch; `tokens` is the residual.
        seeds: (tokens, 2) int, row and column of each seed's patch.
        masks: (tokens + 1, rows, columns) float in [0, 1], fraction of each patch in each cluster;
            the last is the residual. Of hard clusters 0 and 1.
        values: maps (rows, columns) float of the `TOKEN_VALUES` that the clustering has.
        encode_seconds: time of preparing and encoding its batch, divided by the images in it.
        cluster_seconds: time of clustering the batch, divided by the images in it.
    """

    source: Path | None
    name: str
    photo: Image.Image
    labels: np.ndarray
    seeds: np.ndarray
    masks: np.ndarray
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    encode_seconds: float = 0.0
    cluster_seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Number of clusters, the residual not counted."""
        return len(self.seeds)

    @property
    def masses(self) -> np.ndarray:
        """(tokens + 1,) float, patches in each mask; the last is the residual's."""
        return self.masks.sum((1, 2))

    @property
    def sizes(self) -> np.ndarray:
        """(tokens + 1,) int, patches with each label; the last is the residual's."""
        return np.bincount(self.labels.ravel(), minlength=self.tokens + 1)

    @property
    def scores(self) -> np.ndarray | None:
        """(tokens,) float, score of each seed; None for a clustering without scores."""
        score = self.values.get("score")
        return None if score is None else score[self.seeds[:, 0], self.seeds[:, 1]]

    @property
    def distinct_labels(self) -> int:
        """Number of clusters that own a patch, the residual counted."""
        return len(np.unique(self.labels))

    @property
    def residual_fraction(self) -> float:
        """Fraction of the image in no cluster."""
        return float(self.masses[-1]) / self.labels.size


def cluster_batch(
    batch: Sequence[tuple[Path, str, Image.Image]], method: Method
) -> list[ImageClusters]:
    """Encode and cluster images as one batch.

    Args:
        batch: file, stem of the results, and image, RGB and upright, of each.
        method: encoder and options.

    Returns:
        The clusters of each image.
    """
    if not batch:
        return []
    started = time.perf_counter()
    with torch.inference_mode():
        features = method.encoder([photo for _, _, photo in batch])  # (B, H, W, D)
        encoded = time.perf_counter()
        clusters = cluster(features.to(method.device), method.config, method.backend)
        host = to_host(clusters)
    clustered = time.perf_counter()
    results = []
    for (source, name, photo), fields in zip(batch, host, strict=True):
        results.append(
            ImageClusters(
                source=source,
                name=name,
                photo=photo,
                encode_seconds=(encoded - started) / len(batch),
                cluster_seconds=(clustered - encoded) / len(batch),
                **fields,
            )
        )
    return results


def to_host(clusters: Clusters | HardClusters) -> list[dict[str, Any]]:
    """Return the fields of `ImageClusters` that come from the clustering, for each image.

    Args:
        clusters: clusters of B images, (B, N) tokens on a grid of rows and columns.
    """
    assert clusters.grid is not None
    rows, columns = clusters.grid
    counts = clusters.counts.tolist()
    labels = clusters.labels.cpu().numpy()  # (B, N)
    centres = clusters.centres.cpu().numpy()  # (B, C)
    soft = clusters.masks.detach().float().cpu().numpy() if isinstance(clusters, Clusters) else None
    values = {
        name: getattr(clusters, name).detach().float().cpu().numpy()  # (B, N)
        for name in TOKEN_VALUES
        if hasattr(clusters, name)
    }
    results = []
    for b, n in enumerate(counts):
        # A token without a label, whose features are not finite, is in no cluster.
        own = np.where(labels[b] < 0, n, labels[b])
        masks = own == np.arange(n + 1)[:, None] if soft is None else soft[b, : n + 1]
        results.append(
            {
                "labels": own.reshape(rows, columns),
                "seeds": np.stack(np.divmod(centres[b, :n], columns), -1),
                "masks": masks.astype(np.float32).reshape(n + 1, rows, columns),
                "values": {name: value[b].reshape(rows, columns) for name, value in values.items()},
            }
        )
    return results
