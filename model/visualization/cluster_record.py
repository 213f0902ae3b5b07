"""The data of an image's clusters as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import re
from typing import Any

from setokim.utils.file_names import true_path, utf8_name
from setokim.visualization.functions import function_of
from setokim.visualization.image_clusters import ImageClusters, Method

_PACKAGES = ("setok-kernels", "torch", "numpy", "pillow", "transformers")


def to_json(result: ImageClusters, method: Method) -> str:
    """Return the clusters of an image with all options and versions; equal for equal input."""
    rows, columns = result.labels.shape
    width, height = result.photo.size
    scores, masses, patches = result.scores, result.masses, result.sizes
    clusters = [
        {
            "label": label,
            "row": int(row),
            "column": int(column),
            # The middle of the seed's patch, in pixels of the image.
            "x": round((column + 0.5) * width / columns, 1),
            "y": round((row + 0.5) * height / rows, 1),
            "score": None if scores is None else float(scores[label]),
            "mass": float(masses[label]),
            "patches": int(patches[label]),
        }
        for label, (row, column) in enumerate(result.seeds)
    ]
    record = {
        "image": utf8_name(result.source or result.name),
        "source": None if result.source is None else true_path(result.source),
        "width": width,
        "height": height,
        "tokens": result.tokens,
        "distinct_labels": result.distinct_labels,
        "grid": [rows, columns],
        "clusters": clusters,
        "residual": {
            "label": result.tokens,
            "mass": float(masses[-1]),
            "patches": int(patches[result.tokens]),
        },
        "labels": result.labels.tolist(),
        "encoder": method.encoder_name,
        "backend": method.backend,
        "function": function_of(method.config),
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
