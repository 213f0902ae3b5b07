"""Photographs that scikit-image brings along, public domain or CC0."""

from __future__ import annotations

from PIL import Image

from setok_kernels.extras import from_extra

PHOTOGRAPHS = (
    "astronaut",
    "camera",
    "chelsea",
    "clock",
    "coffee",
    "hubble_deep_field",
    "retina",
    "rocket",
)


def photograph(name: str) -> Image.Image:
    """Return one of the `PHOTOGRAPHS`, in the mode of its file.

    Args:
        name: name of the photograph in `skimage.data`, whose documentation describes it.
    """
    with from_extra("photographs"):
        from skimage import data
    return Image.fromarray(getattr(data, name)())
