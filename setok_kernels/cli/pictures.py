"""From picture files to clusters on disk: the work behind `setok cluster`."""

from __future__ import annotations

import importlib.metadata
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from setok_kernels import ClusterConfig, Clusters, cluster_tokens
from setok_kernels.cli.draw import draw_figure
from setok_kernels.cli.errors import UsageError
from setokim import UnreadableImageError, VisionEncoder, load_image

# Before the ending, so that results never overwrite a picture and are known again as results.
RESULT_MARK = ".clusters"
_PACKAGES = ("setok-kernels", "torch", "numpy", "pillow", "transformers")


@dataclass(frozen=True)
class Method:
    """How pictures are clustered.

    Attributes:
        encoder: Makes the features.
        encoder_name: What the user called it.
        config: Options of the clustering.
        backend: Backend of the clustering.
        device: Where encoder and clustering run.
    """

    encoder: VisionEncoder
    encoder_name: str
    config: ClusterConfig
    backend: str = "auto"
    device: str = "cpu"


@dataclass(frozen=True)
class PictureClusters:
    """One picture and its clusters, on the host.

    Attributes:
        source: The file it came from.
        name: Stem of the files it goes to.
        photo: The picture, RGB and upright.
        labels: (rows, columns) int, the cluster of each patch; `tokens` is the residual.
        seeds: (tokens, 2) int, row and column of each seed's patch.
        scores: (tokens,) float, score of each seed.
        masses: (tokens + 1,) float, patches in each mask; the last is the residual's.
        encode_seconds: Share of this picture in preparing and encoding its batch.
        cluster_seconds: Its share in clustering the batch.
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
    def residual_share(self) -> float:
        """Share of the picture in no cluster, from 0 to 1."""
        return float(self.masses[-1]) / self.labels.size


def process_files(
    files: Sequence[Path], out: Path, method: Method, batch_size: int
) -> Iterator[PictureClusters | UnreadableImageError]:
    """Clusters picture files and writes a PNG and a JSON for each.

    Args:
        files: The pictures.
        out: An existing folder.
        method: How to cluster.
        batch_size: Pictures encoded and clustered together.

    Yields:
        For each file its clusters, or why it could not be read. Within a batch the unreadable
        files come first.

    Raises:
        UsageError: A result cannot be written.
    """
    named = list(zip(files, result_names(files), strict=True))
    for start in range(0, len(named), batch_size):
        batch = []
        for file, name in named[start : start + batch_size]:
            try:
                batch.append((file, name, load_image(file)))
            except UnreadableImageError as error:
                yield error
        for picture in cluster_batch(batch, method):
            write_results(picture, out, method)
            yield picture


def cluster_batch(
    batch: Sequence[tuple[Path, str, Image.Image]], method: Method
) -> list[PictureClusters]:
    """Encodes and clusters pictures together.

    Args:
        batch: Of each picture the file it came from, the stem of its results, and the picture.
        method: How to cluster.

    Returns:
        The clusters of each picture.
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
    pictures = []
    for (source, name, photo), fields in zip(batch, host, strict=True):
        pictures.append(
            PictureClusters(
                source=source,
                name=name,
                photo=photo,
                encode_seconds=(encoded - started) / len(batch),
                cluster_seconds=(clustered - encoded) / len(batch),
                **fields,
            )
        )
    return pictures


def result_names(files: Sequence[Path]) -> list[str]:
    """Stems of the results: those of the files, numbered from -2 on where they meet again.

    Names that differ in case only count as equal, as they are on some file systems.
    """
    taken: set[str] = set()
    names = []
    for file in files:
        candidates = (file.stem if i == 1 else f"{file.stem}-{i}" for i in count(1))
        name = next(c for c in candidates if c.casefold() not in taken)
        taken.add(name.casefold())
        names.append(name)
    return names


def write_results(picture: PictureClusters, out: Path, method: Method) -> None:
    """Writes the PNG and the JSON of one picture into the folder `out`.

    Raises:
        UsageError: The folder or a file is not writable.
    """
    stem = out / f"{picture.name}{RESULT_MARK}"
    try:
        draw_figure(picture, method.encoder_name).save(f"{stem}.png")
        Path(f"{stem}.json").write_text(to_json(picture, method), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write the results of {picture.source}: {error}") from error


def to_json(picture: PictureClusters, method: Method) -> str:
    """Everything known about the clusters of a picture; equal for equal input."""
    rows, columns = picture.labels.shape
    width, height = picture.photo.size
    patches = np.bincount(picture.labels.ravel(), minlength=picture.tokens + 1)
    clusters = [
        {
            "label": label,
            "row": int(row),
            "column": int(column),
            # The middle of the seed's patch, in pixels of the picture.
            "x": round((column + 0.5) * width / columns, 1),
            "y": round((row + 0.5) * height / rows, 1),
            "score": float(picture.scores[label]),
            "mass": float(picture.masses[label]),
            "patches": int(patches[label]),
        }
        for label, (row, column) in enumerate(picture.seeds)
    ]
    record = {
        "image": str(picture.source),
        "width": width,
        "height": height,
        "tokens": picture.tokens,
        "distinct_labels": picture.distinct_labels,
        "grid": [rows, columns],
        "clusters": clusters,
        "residual": {
            "label": picture.tokens,
            "mass": float(picture.masses[-1]),
            "patches": int(patches[picture.tokens]),
        },
        "labels": picture.labels.tolist(),
        "encoder": method.encoder_name,
        "backend": method.backend,
        "config": method.config.to_dict(),
        "versions": _versions(),
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    # One line per row of the label map instead of one per patch.
    return re.sub(r"\[\s+([\d,\s]+?)\s+\]", _on_one_line, text) + "\n"


def _on_one_line(found: re.Match[str]) -> str:
    return f"[{' '.join(found[1].split())}]"


def _to_host(clusters: Clusters) -> list[dict[str, np.ndarray]]:
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


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
