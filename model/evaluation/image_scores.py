"""Similarity of two images by pixels and features; metrics of generated and edited images.

Pairs are compared as by the official script of MagicBrush (K. Zhang et al., "MagicBrush: A Manually
Annotated Dataset for Instruction-Guided Image Editing", 2023): the generated image is resized to
the target, and a metric is the mean over the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from setok_kernels.extras import from_extra
from setokim.evaluation.figures import Figures, Table
from setokim.evaluation.frechet import FeatureStatistics, frechet_distance
from setokim.evaluation.image_networks import ImageNetworks

# Side of the Gaussian window of SSIM, in pixels.
SSIM_WINDOW = 11
_DEFINITIONS = {
    "l1": "absolute difference of RGB values in [0, 1]",
    "l2": "squared difference of RGB values in [0, 1]",
    "ssim": "structural similarity, Gaussian window of sigma 1.5, mean of the colours",
    "lpips": "LPIPS with VGG16",
    "dino": "cosine of DINO's class tokens of image and target",
    "clip_i": "cosine of CLIP's features of image and target",
    "clip_t": "cosine of CLIP's features of image and description",
}
# Definition, and reason for the lack of an interval.
FID = (
    "Fréchet distance of Inception's features of all images",
    "it is a function of covariances, biased by the number of images: no mean of samples",
)


def l1(generated: Image.Image, target: Image.Image) -> float:
    """Compute the mean absolute difference of RGB images with values in [0, 1].

    Args:
        generated: image to judge, resized to `target` bicubically.
        target: reference image.
    """
    a, b = _pixels(generated, target)
    return float(np.abs(a - b).mean())


def l2(generated: Image.Image, target: Image.Image) -> float:
    """Compute the mean squared difference, otherwise as `l1`."""
    a, b = _pixels(generated, target)
    return float(np.square(a - b).mean())


def ssim(generated: Image.Image, target: Image.Image) -> float:
    """Compute the structural similarity, the mean of the three colours; at most 1.

    Z. Wang et al., "Image quality assessment: from error visibility to structural similarity",
    2004: a Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03.

    Args:
        generated: image to judge, resized to `target` bicubically.
        target: reference image of at least 11 x 11 pixels.

    Raises:
        ImportError: scikit-image is not installed.
        ValueError: an image is too small.
    """
    with from_extra("eval"):
        from skimage.metrics import structural_similarity

    if min(target.size) < SSIM_WINDOW:
        expected = f"at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels"
        raise ValueError(f"target: expected {expected}, got {target.width} x {target.height}")
    a, b = _pixels(generated, target)
    return float(
        structural_similarity(
            a,
            b,
            channel_axis=2,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def similarity(one: Tensor, other: Tensor) -> float:
    """Compute the cosine of two (D,) features: CLIP-I, CLIP-T or DINO, by their network."""
    return float(F.cosine_similarity(one.double(), other.double(), dim=0))


def edit_metrics(
    pairs: Iterable[tuple[Image.Image, Image.Image, str | None]], networks: ImageNetworks
) -> Figures:
    """Compute the metrics of edits: the similarity of generated images to their targets.

    Args:
        pairs: generated image, target image, and description of the target, if known.
        networks: networks of the metrics; a missing one leaves out its metric.

    Returns:
        `l1`, `l2`, `ssim`, and with networks `lpips`, `dino`, `clip_i`, and `clip_t` of the images
        with a description. Empty without pairs. If targets are too small for SSIM, `ssim_left_out`
        is their number.
    """
    # None for an image that does not count.
    scores: dict[str, list[float | None]] = {}
    for generated, target, text in pairs:
        own = {name: judge(generated, target) for name, judge in {"l1": l1, "l2": l2}.items()}
        own["ssim"] = None
        if min(target.size) >= SSIM_WINDOW:
            own["ssim"] = ssim(generated, target)
        if networks.lpips is not None:
            own["lpips"] = networks.lpips(*_same_size(generated, target))
        for name, embed in {"dino": networks.dino, "clip_i": networks.clip_image}.items():
            if embed is not None:
                own[name] = similarity(embed(generated), embed(target))
        if networks.clip_text is not None:
            own["clip_t"] = None
            if text is not None:
                image, told = networks.clip_image(generated), networks.clip_text(text)
                own["clip_t"] = similarity(image, told)
        for name, value in own.items():
            scores.setdefault(name, []).append(value)
    found = Figures()
    table = found.table([str(index) for index in range(len(scores.get("l1", ())))], "image")
    for name, values in scores.items():
        _add_mean(table, name, values)
    needed = {"lpips": "lpips", "dino": "dino", "clip_i": "clip_image", "clip_t": "clip_image"}
    _name_left_out(found, needed, networks)
    if too_small := scores.get("ssim", []).count(None):
        rule = f"targets of less than {SSIM_WINDOW} x {SSIM_WINDOW} pixels"
        found.constant("ssim_left_out", too_small, rule)
    return found


def generation_metrics(
    pairs: Iterable[tuple[Image.Image, Image.Image, str | None]], networks: ImageNetworks
) -> Figures:
    """Compute the metrics of images generated from text.

    Args:
        pairs: generated image, target image and text, as in `edit_metrics`; the centre of a target
            is cropped to the size of the generated image, as is usual for COCO.
        networks: networks of the metrics; a missing one leaves out its metric.

    Returns:
        `fid` of all images, for at least two pairs, and `clip_t`.
    """
    statistics: tuple[FeatureStatistics, FeatureStatistics] | None = None
    alike: list[float | None] = []
    for generated, target, text in pairs:
        if networks.inception is not None:
            middle = ImageOps.fit(target, generated.size, Image.Resampling.BICUBIC)
            found = [networks.inception(image) for image in (generated, middle)]
            if statistics is None:
                statistics = tuple(FeatureStatistics(len(one)) for one in found)
            for one, features in zip(statistics, found, strict=True):
                one.add(features[None])
        alike.append(None)
        if networks.clip_text is not None and text is not None:
            image, told = networks.clip_image(generated), networks.clip_text(text)
            alike[-1] = similarity(image, told)
    found = Figures()
    if statistics is not None and len(statistics[0]) > 1:
        found.constant("fid", frechet_distance(*statistics), *FID)
    table = found.table([str(index) for index in range(len(alike))], "image")
    _add_mean(table, "clip_t", alike)
    _name_left_out(found, {"fid": "inception", "clip_t": "clip_image"}, networks)
    return found


ImageMetrics = Callable[
    [Iterable[tuple[Image.Image, Image.Image, str | None]], ImageNetworks], Figures
]


def _add_mean(table: Table, name: str, values: list[float | None]) -> None:
    """Add the mean over the images that count, if there are any."""
    known = [value is not None for value in values]
    if any(known):
        table.mean(name, [value or 0.0 for value in values], f"mean {_DEFINITIONS[name]}", known)


def _name_left_out(found: Figures, needed: dict[str, str], networks: ImageNetworks) -> None:
    for name, network in needed.items():
        if getattr(networks, network) is None:
            found.left_out[name] = f"it needs the network {network.removesuffix('_image')}"


def _same_size(generated: Image.Image, target: Image.Image) -> tuple[Image.Image, Image.Image]:
    if generated.size != target.size:
        generated = generated.resize(target.size, Image.Resampling.BICUBIC)
    return generated.convert("RGB"), target.convert("RGB")


def _pixels(generated: Image.Image, target: Image.Image) -> list[np.ndarray]:
    """Return the pixels of both images, (h, w, 3) float64 in [0, 1] each."""
    return [np.asarray(one, np.float64) / 255 for one in _same_size(generated, target)]
