"""Pictures in: finding files, reading any of them as RGB, and turning them into pixel tensors.

PIL and numpy only. torchvision is never imported, and neither is the image processor of
transformers, which needs it in some releases.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
)
_MAX_16_BIT = 65535


class UnreadableImageError(ValueError):
    """A file that should be a picture could not be read; the message names the file."""


class NamedBytes(io.BytesIO):
    """Bytes of a file that `load_image` can name in its message.

    Args:
        data: of the file.
        name: in messages.
    """

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self._name = name

    def __str__(self) -> str:
        return self._name


def find_images(
    inputs: Iterable[str | Path], recursive: bool = False, skip_suffix: str | None = None
) -> list[Path]:
    """Lists the picture files behind paths given by a user.

    Args:
        inputs: Files, kept as they are whether they exist or not, and folders, searched for the
            suffixes of `IMAGE_SUFFIXES` in sorted order.
        recursive: Also search the folders inside a folder.
        skip_suffix: Names that end so are left out of folders.

    Returns:
        The files in the order given, each once.
    """
    found: dict[Path, Path] = {}
    for entry in map(Path, inputs):
        files = [entry]
        if entry.is_dir():
            files = [
                path
                for path in sorted(entry.rglob("*") if recursive else entry.iterdir())
                if path.suffix.lower() in IMAGE_SUFFIXES
                and path.is_file()
                and not (skip_suffix and path.name.endswith(skip_suffix))
            ]
        for path in files:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def load_image(path: str | Path, upright: bool = True) -> Image.Image:
    """Reads a picture as 8-bit RGB, upright.

    EXIF orientation is applied, transparency is laid on white, of an animation the first frame is
    taken, and 16-bit, 32-bit and float pictures are scaled to 8 bits.

    Args:
        path: File, or a stream that `PIL.Image.open` takes.
        upright: False leaves the pixels as they are stored, whatever EXIF says: annotations may
            be of those.

    Raises:
        UnreadableImageError: The file is missing, no picture, or damaged.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            return to_rgb(ImageOps.exif_transpose(opened) if upright else opened)
    except Exception as error:
        # A damaged file makes PIL's decoders raise nearly anything (SyntaxError, struct.error,
        # DecompressionBombError, ...), and for the caller all of it means the same.
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not a picture of a known format"
        raise UnreadableImageError(f"cannot read {path}: {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a picture of any mode to 8-bit RGB.

    Deep greys keep their meaning: 16-bit values are divided by 65535, wider integers and floats
    are stretched from their minimum to their maximum (floats within [0, 1] are taken as such).
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_deep_to_uint8(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layered)
    return image.convert("RGB")


def _deep_to_uint8(values: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    is_float_unit = low >= 0 and high <= 1
    is_16_bit = low >= 0 and 1 < high <= _MAX_16_BIT and np.all(values == np.round(values))
    if is_float_unit:
        low, high = 0.0, 1.0
    elif is_16_bit:
        low, high = 0.0, float(_MAX_16_BIT)
    span = (high - low) or 1.0
    return np.rint((values - low) / span * 255).astype(np.uint8)


@dataclass(frozen=True)
class ImageProcessor:
    """Resizes with PIL and normalises with numpy, like the image processors of transformers.

    The whole picture is squeezed to one size and nothing is cropped, because every part of it
    must belong to a patch.

    Attributes:
        mean: Per channel, subtracted after scaling to [0, 1].
        std: Per channel, divides what is left.
        rescale_factor: Multiplies the 8-bit values.
        resample: A PIL resampling filter.
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255
    resample: int = Image.Resampling.BICUBIC

    @classmethod
    def from_file(cls, path: str | Path) -> ImageProcessor:
        """Reads what a `preprocessor_config.json` says; what it leaves out keeps the default."""
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
        chosen: dict[str, object] = {}
        if settings.get("do_normalize", True):
            if settings.get("image_mean"):
                chosen["mean"] = tuple(settings["image_mean"])
            if settings.get("image_std"):
                chosen["std"] = tuple(settings["image_std"])
        else:
            chosen |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        if not settings.get("do_rescale", True):
            chosen["rescale_factor"] = 1.0
        elif settings.get("rescale_factor"):
            chosen["rescale_factor"] = settings["rescale_factor"]
        if settings.get("resample") is not None:
            chosen["resample"] = settings["resample"]
        return cls(**chosen)

    def __call__(self, images: Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
        """Turns RGB pictures of any sizes into one batch.

        Args:
            images: B pictures of mode RGB.
            size: Height and width of the result in pixels.

        Returns:
            (B, 3, height, width), float32.
        """
        height, width = size
        batch = np.empty((len(images), 3, height, width), np.float32)
        mean = np.array(self.mean, np.float32)
        std = np.array(self.std, np.float32)
        for i, image in enumerate(images):
            resized = np.asarray(image.resize((width, height), self.resample))  # (height, width, 3)
            # float64 until the product is rounded once, which is what transformers does.
            scaled = (resized.astype(np.float64) * self.rescale_factor).astype(np.float32)
            batch[i] = ((scaled - mean) / std).transpose(2, 0, 1)
        return torch.from_numpy(batch)


def to_image(picture: Tensor) -> Image.Image:
    """An RGB picture from (3, h, w) in [0, 1]."""
    levels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu()
    return Image.fromarray(levels.numpy())
