"""Clusters of images on the host, computed by an encoder and the token clustering."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from setok_kernels import ClusterConfig, Clusters, cluster_tokens
from setokim import VisionEncoder


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
    config: ClusterConfig
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
        scores: (tokens,) float, score of each seed.
        masses: (tokens + 1,) float, patches in each mask; the last is the residual's.
        encode_seconds: time of preparing and encoding its batch, divided by the images in it.
        cluster_seconds: time of clustering the batch, divided by the images in it.
    """

    source: Path
    name: str
    photo: Image.Image
    labels: np.ndarray
    seeds: np.ndarray
    scores: np.ndarray
    masses: np.ndarray
    encode_seconds: float
    cluster_seconds: float

    @property
    def tokens(self) -> int:
        """Number of clusters, the residual not counted."""
        return len(self.seeds)

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
        clusters = cluster_tokens(features.to(method.device), method.config, backend=method.backend)
        host = _to_host(clusters)
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


def _to_host(clusters: Clusters) -> list[dict[str, np.ndarray]]:
    """Return the fields of `ImageClusters` that come from the clustering, for each image."""
    rows, columns = clusters.grid
    counts = clusters.counts.tolist()
    labels = clusters.labels.cpu().numpy()  # (B, N)
    seeds = clusters.decisions.seeds.cpu().numpy()  # (B, C)
    scores = clusters.score.cpu().numpy()  # (B, N)
    masses = clusters.masks.sum(-1).cpu().numpy()  # (B, C + 1)
    return [
        {
            "labels": labels[b].reshape(rows, columns),
            "seeds": np.stack(np.divmod(seeds[b, :n], columns), -1),
            "scores": scores[b][seeds[b, :n]],
            "masses": masses[b, : n + 1],
        }
        for b, n in enumerate(counts)
    ]
