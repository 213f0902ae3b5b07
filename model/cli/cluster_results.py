"""The work of `setok cluster`: image files in, cluster maps and their data on disk."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from setok_cli.errors import UsageError
from setokim import UnreadableImageError, load_image
from setokim.cli.cluster_maps import draw_figure
from setokim.cli.image_clusters import ImageClusters, Method, cluster_batch
from setokim.cli.names import RESULT_MARK, result_names
from setokim.utils.file_names import printable_name, true_path, utf8_name
from setokim.utils.files import replacing, write_file

_PACKAGES = ("setok-kernels", "torch", "numpy", "pillow", "transformers")


def process_files(
    files: Sequence[Path], out: Path, method: Method, batch_size: int
) -> Iterator[ImageClusters | UnreadableImageError]:
    """Cluster image files and write a PNG and a JSON for each.

    Args:
        files: image files.
        out: folder of the results, which exists.
        method: encoder and options.
        batch_size: number of images that are encoded and clustered together.

    Yields:
        For each file its clusters, or the error of reading it. Within a batch the errors come
        first.

    Raises:
        UsageError: a result cannot be written.
    """
    named = list(zip(files, result_names(files, out), strict=True))
    for start in range(0, len(named), batch_size):
        batch = []
        for file, name in named[start : start + batch_size]:
            try:
                batch.append((file, name, load_image(file)))
            except UnreadableImageError as error:
                yield error
        for result in cluster_batch(batch, method):
            write_results(result, out, method)
            yield result


def write_results(result: ImageClusters, out: Path, method: Method) -> None:
    """Write the JSON and the PNG of an image, each atomically.

    The JSON comes first: it names the image, should the second file never be written.

    Args:
        result: clusters of the image.
        out: folder of the results.
        method: encoder and options.

    Raises:
        UsageError: the folder or a file is not writable.
    """
    stem = f"{result.name}{RESULT_MARK}"
    try:
        write_file(out / f"{stem}.json", to_json(result, method))
        with replacing(out / f"{stem}.png") as beside:
            draw_figure(result, method.encoder_name).save(beside)
    except OSError as error:
        source = printable_name(result.source)
        raise UsageError(f"cannot write the results of {source}: {error}") from error


def to_json(result: ImageClusters, method: Method) -> str:
    """Return the clusters of an image with all options and versions; equal for equal input."""
    rows, columns = result.labels.shape
    width, height = result.photo.size
    patches = np.bincount(result.labels.ravel(), minlength=result.tokens + 1)
    clusters = [
        {
            "label": label,
            "row": int(row),
            "column": int(column),
            # The middle of the seed's patch, in pixels of the image.
            "x": round((column + 0.5) * width / columns, 1),
            "y": round((row + 0.5) * height / rows, 1),
            "score": float(result.scores[label]),
            "mass": float(result.masses[label]),
            "patches": int(patches[label]),
        }
        for label, (row, column) in enumerate(result.seeds)
    ]
    record = {
        "image": utf8_name(result.source),
        "source": true_path(result.source),
        "width": width,
        "height": height,
        "tokens": result.tokens,
        "distinct_labels": result.distinct_labels,
        "grid": [rows, columns],
        "clusters": clusters,
        "residual": {
            "label": result.tokens,
            "mass": float(result.masses[-1]),
            "patches": int(patches[result.tokens]),
        },
        "labels": result.labels.tolist(),
        "encoder": method.encoder_name,
        "backend": method.backend,
        "config": method.config.to_dict(),
        "versions": _versions(),
    }
    return _laid_out(record) + "\n"


def _laid_out(value: Any, indent: str = "") -> str:
    """Return JSON with an indent of 2 and each list of numbers, such as a row, on one line."""
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
    # Bytes of a file name that are no UTF-8, which a file holds only as escapes.
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
