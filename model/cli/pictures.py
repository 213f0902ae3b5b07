"""From picture files to clusters on disk: the work behind `setok cluster`."""

from __future__ import annotations

import importlib.metadata
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from setok_cli.errors import UsageError
from setok_kernels import ClusterConfig, Clusters, cluster_tokens
from setokim import UnreadableImageError, VisionEncoder, load_image
from setokim.cli.draw import draw_figure
from setokim.cli.names import RESULT_MARK, result_names
from setokim.utils.file_names import printable_name, true_path, utf8_name
from setokim.utils.files import replacing, write_file

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
    named = list(zip(files, result_names(files, out), strict=True))
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


def write_results(picture: PictureClusters, out: Path, method: Method) -> None:
    """Writes the JSON and the PNG of one picture into the folder `out`, each as a whole.

    The JSON comes first: it says whose results these are, should the second file never be written.

    Raises:
        UsageError: The folder or a file is not writable.
    """
    stem = f"{picture.name}{RESULT_MARK}"
    try:
        write_file(out / f"{stem}.json", to_json(picture, method))
        with replacing(out / f"{stem}.png") as beside:
            draw_figure(picture, method.encoder_name).save(beside)
    except OSError as error:
        source = printable_name(picture.source)
        raise UsageError(f"cannot write the results of {source}: {error}") from error


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
        "image": utf8_name(picture.source),
        "source": true_path(picture.source),
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
    return _laid_out(record) + "\n"


def _laid_out(value: Any, indent: str = "") -> str:
    """JSON with an indent of 2 and each list of numbers, such as a row of the map, on one line."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        items = [f"{_text(key)}: {_laid_out(one, inner)}" for key, one in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value):
        items = [_laid_out(one, inner) for one in value]
        opening, closing = "[", "]"
    else:
        return _text(value)
    return f"{opening}\n{inner}" + f",\n{inner}".join(items) + f"\n{indent}{closing}"


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    # Bytes of a file name that are no UTF-8, which no file could hold unescaped.
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


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
