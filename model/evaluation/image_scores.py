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
from setokim.evaluation.frechet import FeatureStatistics, frechet_distance
from setokim.evaluation.image_networks import ImageNetworks

# Side of the Gaussian window of SSIM, in pixels.
_SSIM_WINDOW = 11


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

    if min(target.size) < _SSIM_WINDOW:
        expected = f"at least {_SSIM_WINDOW} x {_SSIM_WINDOW} pixels"
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
) -> dict[str, float]:
    """Compute the metrics of edits: the similarity of generated images to their targets.

    Args:
        pairs: generated image, target image, and description of the target, if known.
        networks: networks of the metrics; a missing one leaves out its metric.

    Returns:
        `l1`, `l2`, `ssim`, and with networks `lpips`, `dino`, `clip_i`, and `clip_t` of the images
        with a description. Empty without pairs. If targets are too small for SSIM, `ssim_left_out`
        is their number.
    """
    scores: dict[str, list[float]] = {}
    too_small = 0

    def note(name: str, value: float) -> None:
        scores.setdefault(name, []).append(value)

    for generated, target, text in pairs:
        for name, judge in {"l1": l1, "l2": l2}.items():
            note(name, judge(generated, target))
        if min(target.size) >= _SSIM_WINDOW:
            note("ssim", ssim(generated, target))
        else:
            too_small += 1
        if networks.lpips is not None:
            note("lpips", networks.lpips(*_same_size(generated, target)))
        for name, embed in {"dino": networks.dino, "clip_i": networks.clip_image}.items():
            if embed is not None:
                note(name, similarity(embed(generated), embed(target)))
        if networks.clip_text is not None and text is not None:
            note("clip_t", similarity(networks.clip_image(generated), networks.clip_text(text)))
    metrics = {name: float(np.mean(values)) for name, values in scores.items()}
    return metrics | ({"ssim_left_out": too_small} if too_small else {})


def generation_metrics(
    pairs: Iterable[tuple[Image.Image, Image.Image, str | None]], networks: ImageNetworks
) -> dict[str, float]:
    """Compute the metrics of images generated from text.

    Args:
        pairs: generated image, target image and text, as in `edit_metrics`; the centre of a target
            is cropped to the size of the generated image, as is usual for COCO.
        networks: networks of the metrics; a missing one leaves out its metric.

    Returns:
        `fid` of all images, for at least two pairs, and `clip_t`.
    """
    statistics: tuple[FeatureStatistics, FeatureStatistics] | None = None
    alike: list[float] = []
    for generated, target, text in pairs:
        if networks.inception is not None:
            middle = ImageOps.fit(target, generated.size, Image.Resampling.BICUBIC)
            found = [networks.inception(image) for image in (generated, middle)]
            if statistics is None:
                statistics = tuple(FeatureStatistics(len(one)) for one in found)
            for one, features in zip(statistics, found, strict=True):
                one.add(features[None])
        if networks.clip_text is not None and text is not None:
            alike.append(similarity(networks.clip_image(generated), networks.clip_text(text)))
    metrics: dict[str, float] = {}
    if statistics is not None and len(statistics[0]) > 1:
        metrics["fid"] = frechet_distance(*statistics)
    if alike:
        metrics["clip_t"] = float(np.mean(alike))
    return metrics


ImageMetrics = Callable[
    [Iterable[tuple[Image.Image, Image.Image, str | None]], ImageNetworks], dict[str, float]
]


def _same_size(generated: Image.Image, target: Image.Image) -> tuple[Image.Image, Image.Image]:
    if generated.size != target.size:
        generated = generated.resize(target.size, Image.Resampling.BICUBIC)
    return generated.convert("RGB"), target.convert("RGB")


def _pixels(generated: Image.Image, target: Image.Image) -> list[np.ndarray]:
    """Return the pixels of both images, (h, w, 3) float64 in [0, 1] each."""
    return [np.asarray(one, np.float64) / 255 for one in _same_size(generated, target)]
