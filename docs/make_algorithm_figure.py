"""Makes docs/algorithm.png and prints the numbers that docs/algorithm.md quotes.

python docs/make_algorithm_figure.py [--out docs/algorithm.png]

The same photographs and the same features under both presets: the literal one collapses, the
default follows the objects.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from PIL import Image
from skimage import data

from setok_kernels import ClusterConfig, cluster_tokens
from setokim import build_encoder
from setokim.visualization.cluster_maps import draw_map, fit
from setokim.visualization.image_clusters import ImageClusters, Method, cluster_batch

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
PRESETS = {"ClusterConfig.paper()": ClusterConfig.paper(), "ClusterConfig()": ClusterConfig()}
ENCODER = "patch-statistics"
CELL = (512, 400)
SHOWN_STEPS = 20
# The literal preset depends on the scale of the features, so the collapse is sought at many.
FEATURE_SCALES = (1, 3, 10, 30, 100, 1000)


@functools.cache
def encoder():
    """The encoder of all pictures."""
    return build_encoder(ENCODER)


def cluster(name: str, photo: Image.Image, config: ClusterConfig) -> ImageClusters:
    """Clusters one photograph as `setok cluster` does."""
    method = Method(encoder(), ENCODER, config)
    return cluster_batch([(Path(name), name, photo)], method)[0]


def scope_left(photo: Image.Image, config: ClusterConfig) -> np.ndarray:
    """Mean scope before each step and after the last one, (steps + 1,)."""
    out = cluster_tokens(encoder()([photo]), config)
    steps = int(out.counts[0])
    taken = out.masks[0, :steps].mean(-1).cumsum(0)  # (steps,)
    return np.concatenate([[1.0], 1 - taken.numpy()])


def print_paper_at_all_scales() -> None:
    """Literal preset on scaled features, with its early stop and without."""
    for name in PHOTOGRAPHS:
        features = encoder()([Image.fromarray(getattr(data, name)())])  # (1, H, W, D)
        for stop in (0.02, 0.0):
            config = ClusterConfig.paper(stop_residual=stop)
            results = [cluster_tokens(features * scale, config) for scale in FEATURE_SCALES]
            seeds = [int(out.counts[0]) for out in results]
            sizes = [out.labels[0].bincount() for out in results]
            labels = [int((size > 0).sum()) for size in sizes]
            smallest = min(float(size.max() / size.sum()) for size in sizes)
            print(
                f"{name:<10} paper, features x {FEATURE_SCALES}, stop_residual {stop}: seeds "
                f"{seeds}, labels {labels}, largest label at least {smallest:.1%}"
            )


def describe(picture: ImageClusters) -> str:
    """Seeds, the places they lie at, and what a token's largest mask makes of them."""
    places = len(np.unique(picture.seeds, axis=0))
    largest = np.bincount(picture.labels.ravel()).max() / picture.labels.size
    return (
        f"{_count(picture.tokens, 'seed')} at {_count(places, 'place')}, "
        f"{_count(picture.distinct_labels, 'label')} (largest {largest:.0%})"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _show(axes: Axes, image: Image.Image, title: str) -> None:
    axes.imshow(image)
    axes.set_title(title, fontsize=10)
    axes.axis("off")


def main() -> None:
    """Draws one column per photograph: itself, both presets, and the scope that is left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default_path = Path(__file__).with_name("algorithm.png")
    parser.add_argument("--out", type=Path, default=default_path, metavar="FILE")
    path: Path = parser.parse_args().out

    figure, grid = plt.subplots(4, len(PHOTOGRAPHS), figsize=(15, 13), layout="constrained")
    for column, name in zip(grid.T, PHOTOGRAPHS, strict=True):
        photo = Image.fromarray(getattr(data, name)())
        size = fit(photo.size, CELL)
        _show(column[0], photo.resize(size, Image.Resampling.LANCZOS), name)
        for axes, (label, config) in zip(column[1:3], PRESETS.items(), strict=True):
            picture = cluster(name, photo, config)
            facts = describe(picture)
            _show(axes, draw_map(picture, size), f"{label}\n{facts}")
            scope = scope_left(photo, config)
            column[3].plot(scope[: SHOWN_STEPS + 1], marker=".", label=label)
            steps = " ".join(f"{left:.3f}" for left in scope[:8])
            print(f"{name:<10} {label:<24} {facts:<52} scope {steps}")
        column[3].set(xlabel="steps", ylabel="mean scope left", ylim=(0, 1.02))
        column[3].grid(alpha=0.3)
        column[3].legend(fontsize=8)
    figure.savefig(path, dpi=80)
    print_paper_at_all_scales()
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
