"""How like two pictures are, pixel by pixel and by features; figures of drawn and edited pictures.

Pairs are judged as by the official script of MagicBrush (K. Zhang et al., "MagicBrush: A Manually
Annotated Dataset for Instruction-Guided Image Editing", 2023): the drawn picture gets the size of
the wanted one, and a figure is the mean over the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from setok_kernels.extras import from_extra
from setokim.evaluation.frechet import FeatureStatistics, frechet_distance
from setokim.evaluation.image_networks import PictureNetworks

# Of the Gaussian window of SSIM, in pixels.
_SSIM_LEAST = 11


def l1(drawn: Image.Image, wanted: Image.Image) -> float:
    """Mean absolute difference of the values of RGB pictures, which lie in [0, 1].

    Args:
        drawn: gets the size of `wanted`, bicubically.
        wanted: the right picture.
    """
    a, b = _pixels(drawn, wanted)
    return float(np.abs(a - b).mean())


def l2(drawn: Image.Image, wanted: Image.Image) -> float:
    """Mean squared difference, else as `l1`."""
    a, b = _pixels(drawn, wanted)
    return float(np.square(a - b).mean())


def ssim(drawn: Image.Image, wanted: Image.Image) -> float:
    """Structural similarity, the mean of the three colours; at most 1.

    Z. Wang et al., "Image quality assessment: from error visibility to structural similarity",
    2004: a Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03.

    Args:
        drawn: as of `l1`.
        wanted: of at least 11 x 11 pixels.

    Raises:
        ImportError: scikit-image is not installed.
        ValueError: a picture is too small.
    """
    with from_extra("eval"):
        from skimage.metrics import structural_similarity

    if min(wanted.size) < _SSIM_LEAST:
        expected = f"at least {_SSIM_LEAST} x {_SSIM_LEAST} pixels"
        raise ValueError(f"wanted: expected {expected}, got {wanted.width} x {wanted.height}")
    a, b = _pixels(drawn, wanted)
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
    """Cosine of two (D,) features: CLIP-I, CLIP-T or DINO, by where they are from."""
    return float(F.cosine_similarity(one.double(), other.double(), dim=0))


def pair_figures(
    pairs: Iterable[tuple[Image.Image, Image.Image, str | None]], networks: PictureNetworks
) -> dict[str, float]:
    """Figures of edits: how near drawn pictures are to the wanted ones.

    Args:
        pairs: drawn picture, wanted picture, and what the wanted one shows in words, if known.
        networks: those that are not given leave out their figures.

    Returns:
        `l1`, `l2`, `ssim`, and with networks `lpips`, `dino`, `clip_i`, and `clip_t` of the
        pictures with words. Empty without pairs. Where wanted pictures are too small for SSIM,
        `ssim_left_out` is their number.
    """
    scores: dict[str, list[float]] = {}
    too_small = 0

    def note(name: str, value: float) -> None:
        scores.setdefault(name, []).append(value)

    for drawn, wanted, words in pairs:
        for name, judge in {"l1": l1, "l2": l2}.items():
            note(name, judge(drawn, wanted))
        if min(wanted.size) >= _SSIM_LEAST:
            note("ssim", ssim(drawn, wanted))
        else:
            too_small += 1
        if networks.lpips is not None:
            note("lpips", networks.lpips(*_same_size(drawn, wanted)))
        for name, embed in {"dino": networks.dino, "clip_i": networks.clip_picture}.items():
            if embed is not None:
                note(name, similarity(embed(drawn), embed(wanted)))
        if networks.clip_words is not None and words is not None:
            note("clip_t", similarity(networks.clip_picture(drawn), networks.clip_words(words)))
    figures = {name: float(np.mean(values)) for name, values in scores.items()}
    return figures | ({"ssim_left_out": too_small} if too_small else {})


def drawing_figures(
    pairs: Iterable[tuple[Image.Image, Image.Image, str | None]], networks: PictureNetworks
) -> dict[str, float]:
    """Figures of pictures drawn from words.

    Args:
        pairs: as of `pair_figures`; of a wanted picture the middle is taken, in the size of the
            drawn one, as is usual for COCO.
        networks: those that are not given leave out their figures.

    Returns:
        `fid` of all pictures, of at least two pairs, and `clip_t`.
    """
    statistics: tuple[FeatureStatistics, FeatureStatistics] | None = None
    alike: list[float] = []
    for drawn, wanted, words in pairs:
        if networks.inception is not None:
            middle = ImageOps.fit(wanted, drawn.size, Image.Resampling.BICUBIC)
            found = [networks.inception(picture) for picture in (drawn, middle)]
            if statistics is None:
                statistics = tuple(FeatureStatistics(len(one)) for one in found)
            for one, features in zip(statistics, found, strict=True):
                one.add(features[None])
        if networks.clip_words is not None and words is not None:
            alike.append(similarity(networks.clip_picture(drawn), networks.clip_words(words)))
    figures: dict[str, float] = {}
    if statistics is not None and len(statistics[0]) > 1:
        figures["fid"] = frechet_distance(*statistics)
    if alike:
        figures["clip_t"] = float(np.mean(alike))
    return figures


PictureFigures = Callable[
    [Iterable[tuple[Image.Image, Image.Image, str | None]], PictureNetworks], dict[str, float]
]


def _same_size(drawn: Image.Image, wanted: Image.Image) -> tuple[Image.Image, Image.Image]:
    if drawn.size != wanted.size:
        drawn = drawn.resize(wanted.size, Image.Resampling.BICUBIC)
    return drawn.convert("RGB"), wanted.convert("RGB")


def _pixels(drawn: Image.Image, wanted: Image.Image) -> list[np.ndarray]:
    """(h, w, 3) float64 in [0, 1], both."""
    return [np.asarray(one, np.float64) / 255 for one in _same_size(drawn, wanted)]
