"""Reconstruction of images from their tokens: rFID, PSNR, SSIM, LPIPS and the number of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from setokim.data import Dataset
from setokim.data.image_folder import ImageFolder
from setokim.data.image_processing import to_image
from setokim.data.readers import READERS
from setokim.evaluation.figures import Figures
from setokim.evaluation.frechet import FeatureStatistics, frechet_distance
from setokim.evaluation.image_networks import ImageNetworks
from setokim.evaluation.image_scores import FID, SSIM_WINDOW, l2, ssim
from setokim.evaluation.readable import read_samples
from setokim.tokenizer.modeling_setok import SetokModel

_BATCH_SIZE = 16
_PERCENTILES = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}
_DEFINITIONS = {
    "psnr": "mean over images of 10 log10(1 / mean squared difference of RGB in [0, 1]), in dB",
    "ssim": "mean over images of SSIM, Gaussian window of sigma 1.5, mean of the colours",
    "lpips": "mean over images of LPIPS with VGG16",
    "tokens": "mean number of tokens of an image",
}


def open_images(path: str | Path, split: str | None = None) -> Dataset:
    """Open the images of a folder of any layout, or of ImageNet's parquet files.

    Args:
        path: folder of images, with subfolders or without, or folder with SPLIT-*.parquet or
            data/SPLIT-*.parquet.
        split: subfolder of the images, such as val2017; or beginning of the names of the parquet
            files, "validation" by default. None for all images of the folder.

    Raises:
        ImportError: pyarrow is not installed, and there are parquet files.
        ValueError: there are neither images nor such files.
    """
    root = Path(path)
    folder = root if split is None else root / split
    if split is None or not folder.is_dir():
        pattern = f"{split or 'validation'}-*.parquet"
        if any(root.glob(pattern)) or any(root.glob(f"data/{pattern}")):
            return READERS["imagenet-parquet"](root, split or "validation")
    return ImageFolder(folder, captions=False)


@torch.no_grad()
def reconstruction_metrics(
    setok: SetokModel,
    dataset: Dataset,
    number: int,
    show: Callable[[int], None] = lambda number: None,
    networks: ImageNetworks | None = None,
) -> Figures:
    """Compare images with their reconstructions from the tokens.

    The centre of an image in the proportions of the reconstruction is what the tokenizer gets, at
    its full resolution. Resized bicubically to the size of the reconstruction, it is the reference.
    Both are compared as RGB images of 8 bits.

    Args:
        setok: model in evaluation mode.
        dataset: samples with an `image`.
        number: number of samples, from the beginning.
        show: callback with the number of samples read so far.
        networks: networks of `rfid` and `lpips`; metrics without their network are left out and
            named in `left_out` of the result.

    Returns:
        `psnr`; `ssim`, if the reconstructions are large enough for its window; `rfid`, for at least
        two images; `lpips`; `tokens`, the mean number of tokens of an image, `tokens_std`, and
        their percentiles; `samples` and `broken`. Exact reconstructions, whose PSNR is infinite,
        do not count for it; `psnr_left_out` is their number, if there are any.

    Raises:
        ImportError: scikit-image is not installed.
    """
    networks = ImageNetworks() if networks is None else networks
    scores: dict[str, list[float]] = {name: [] for name in ("psnr", "ssim", "lpips", "tokens")}
    units: list[str] = []
    features: tuple[FeatureStatistics, FeatureStatistics] | None = None
    broken = 0
    for batch, unreadable in _batches(dataset, number, show):
        broken += unreadable
        for index, count, pair in _reconstructed(setok, batch):
            units.append(str(index))
            scores["tokens"].append(count)
            for name, value in _compared(*pair, networks).items():
                scores[name].append(value)
            if networks.inception is not None:
                found = [networks.inception(image)[None] for image in pair]
                if features is None:
                    features = tuple(FeatureStatistics(one.shape[1]) for one in found)
                for one, own in zip(features, found, strict=True):
                    one.add(own)
    figures = _figures(scores, units)
    if features is not None and len(units) > 1:
        figures.constant("rfid", frechet_distance(*features), *FID)
    for name, network in {"rfid": "inception", "lpips": "lpips"}.items():
        if getattr(networks, network) is None:
            figures.left_out[name] = f"it needs the network {network}"
    if units and not scores["ssim"]:
        figures.left_out["ssim"] = f"it needs {SSIM_WINDOW} x {SSIM_WINDOW} pixels"
    figures.constant("samples", len(units), "images that count")
    figures.constant("broken", broken, "samples that cannot be read")
    return figures


def _batches(
    dataset: Dataset, number: int, show: Callable[[int], None]
) -> Iterator[tuple[list[tuple[int, Image.Image]], int]]:
    """Yield batches of indices and images, with the number of unreadable samples among them."""
    batch: list[tuple[int, Image.Image]] = []
    broken = 0
    for index, sample in enumerate(read_samples(dataset, number, show)):
        if sample is None:
            broken += 1
            continue
        batch.append((index, sample.image.convert("RGB")))
        if len(batch) == _BATCH_SIZE:
            yield batch, broken
            batch, broken = [], 0
    yield batch, broken


def _reconstructed(
    setok: SetokModel, batch: list[tuple[int, Image.Image]]
) -> Iterator[tuple[int, int, tuple[Image.Image, Image.Image]]]:
    """Yield index, number of tokens, and reconstruction and reference of each image of a batch."""
    if not batch:
        return
    config = setok.config
    height, width = (side * config.decoder_patch_size for side in config.decoder_grid)
    centres = [_centre(image, width / height) for _, image in batch]
    visual = setok.tokenize(centres)
    images = setok.detokenizer(visual.tokens, visual.occupied).float()
    counts = visual.occupied.sum(1).tolist()
    for (index, _), centre, pixels, count in zip(batch, centres, images, counts, strict=True):
        reference = centre.resize((width, height), Image.Resampling.BICUBIC)
        yield index, count, (to_image(pixels), reference)


def _compared(
    image: Image.Image, reference: Image.Image, networks: ImageNetworks
) -> dict[str, float]:
    error = l2(image, reference)
    found = {"psnr": -10 * math.log10(error) if error else math.inf}
    if min(reference.size) >= SSIM_WINDOW:
        found["ssim"] = ssim(image, reference)
    if networks.lpips is not None:
        found["lpips"] = networks.lpips(image, reference)
    return found


def _figures(scores: dict[str, list[float]], units: list[str]) -> Figures:
    found = Figures()
    table = found.table(units, "image")
    for name, values in scores.items():
        finite = [math.isfinite(value) for value in values]
        if any(finite):
            table.mean(name, values, _DEFINITIONS[name], finite)
        if not all(finite):
            found.constant(f"{name}_left_out", finite.count(False), "exact reconstructions")
    if scores["tokens"]:
        counts = np.array(scores["tokens"])
        spread: dict[str, tuple[Any, str]] = {"std": (counts.std(), "standard deviation")}
        for name, percent in _PERCENTILES.items():
            value = np.percentile(counts, percent, method="inverted_cdf")
            spread[name] = value, f"percentile {percent}"
        for name, (value, rule) in spread.items():
            definition = f"{rule} of the number of tokens of an image"
            found.constant(f"tokens_{name}", float(value), definition, "it describes a spread")
    return found


def _centre(image: Image.Image, proportion: float) -> Image.Image:
    """Crop the centre of a width that is `proportion` times the height, as large as possible."""
    width = min(image.width, max(1, round(image.height * proportion)))
    height = min(image.height, max(1, round(image.width / proportion)))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
