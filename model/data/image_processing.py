"""Image files: find them, read them as RGB, and turn them into pixel tensors.

Only PIL and numpy are used. torchvision is never imported, and neither is the image processor of
transformers, which needs it in some releases.
"""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from setokim.utils.file_names import printable_name, true_path
from setokim.utils.files import UNFINISHED

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
)
# Other suffixes of images: read where Pillow or a plugin supports them, else reported by name.
OTHER_IMAGE_SUFFIXES = frozenset(
    {".arw", ".avif", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl"}
    | {".nef", ".pbm", ".pfm", ".pnm", ".qoi", ".tga"}
)
_MAX_16_BIT = 65535
_TIFF_BITS = 258  # tag BitsPerSample
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnreadableImageError(ValueError):
    """Error for a file that cannot be read as an image; the message names the file."""


class NamedBytes(io.BytesIO):
    """Bytes of a file that `load_image` can name in its message.

    Args:
        data: content of the file.
        name: name of the file in messages.
    """

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self._name = name

    def __str__(self) -> str:
        return self._name


def find_images(
    inputs: Iterable[str | Path],
    recursive: bool = False,
    skip_suffix: str | tuple[str, ...] | None = None,
) -> list[Path]:
    """List the image files behind paths given by a user; see `scan_images`."""
    return scan_images(inputs, recursive, skip_suffix)[0]


def scan_images(
    inputs: Iterable[str | Path],
    recursive: bool = False,
    skip_suffix: str | tuple[str, ...] | None = None,
) -> tuple[list[Path], list[UnreadableImageError]]:
    """List the image files behind paths given by a user, and the errors met on the way.

    Args:
        inputs: files, kept as they are whether they exist or not, and folders, searched for names
            of images in sorted order.
        recursive: search of subfolders too; links to folders are not followed.
        skip_suffix: ending, or endings, of the names to leave out of folders.

    Returns:
        The files in the order given, each once. An error for every image name in a folder that is
        a broken link, no file, or of a format that this Pillow cannot read, and for every folder
        that cannot be searched.
    """
    found: dict[str, Path] = {}
    refused: list[UnreadableImageError] = []
    for entry in map(Path, inputs):
        files = _search(entry, recursive, refused) if entry.is_dir() else [entry]
        for path in files:
            if path is entry or not (skip_suffix and path.name.endswith(skip_suffix)):
                found.setdefault(true_path(path), path)
    return list(found.values()), refused


def _search(folder: Path, recursive: bool, refused: list[UnreadableImageError]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        refused.append(_unreadable(error.filename, error))

    listed: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        listed += (Path(parent, name) for name in names)
        if not recursive:
            folders.clear()
    for path in sorted(listed):
        suffix = path.suffix.lower()
        is_image = suffix in IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES
        if not is_image or path.name.startswith(UNFINISHED):
            continue
        try:
            _require_regular(path)
            if suffix in OTHER_IMAGE_SUFFIXES and not _opens(suffix):
                raise ValueError(f"the Pillow installed here does not read {suffix} files")
        except (OSError, ValueError) as error:
            refused.append(_unreadable(path, error))
        else:
            yield path


def _opens(suffix: str) -> bool:
    """Return whether Pillow, with the plugins registered now, reads files of this ending."""
    return Image.registered_extensions().get(suffix) in Image.OPEN


def load_image(
    path: str | Path, upright: bool = True, max_pixels: int | None = None
) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    EXIF orientation is applied, the first frame of an animation is taken, and `to_rgb` converts
    the mode.

    Args:
        path: file, or a stream that `PIL.Image.open` accepts.
        upright: rotation by the EXIF orientation; False keeps the pixels as stored, to which
            annotations may refer.
        max_pixels: largest number of pixels, checked before they are decoded; None for Pillow's
            own limit.

    Raises:
        UnreadableImageError: the file is missing, no image, no regular file, too large, or damaged.
    """
    try:
        _require_regular(path)
        with Image.open(path) as opened:
            _check_pixels(opened, max_pixels)
            opened.load()
            top = _stated_top(opened)
            if upright:
                ImageOps.exif_transpose(opened, in_place=True)
            if opened.mode == "RGB" and not opened.has_transparency_data:
                # What `convert` does but for its copy, which takes as long as decoding a JPEG.
                return opened._new(opened.im)
            return _to_rgb(opened, top)
    except Exception as error:
        # A damaged file makes PIL's decoders raise nearly anything (SyntaxError, struct.error,
        # DecompressionBombError, ...), which all means the same to the caller.
        raise _unreadable(path, error) from error


def _check_pixels(image: Image.Image, most: int | None) -> None:
    width, height = image.size
    if most is not None and width * height > most:
        raise ValueError(
            f"expected at most {most / 1e6:.0f} megapixels, got {width * height / 1e6:.0f} "
            f"({width} x {height})"
        )


def _unreadable(path: str | Path | io.BytesIO, error: Exception) -> UnreadableImageError:
    name = str(path) if isinstance(path, io.BytesIO) else printable_name(path)
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image of a known format"
    return UnreadableImageError(f"cannot read {name}: {reason}")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB.

    Transparent pixels become white. Deep greys are scaled by their depth: 0 stays black and the
    top of the range becomes white. The top follows from mode or file where they state the depth:
    65535 for 16 bits ("I;16", a PGM or PNG), 4095 for a 12-bit TIFF. Images of 32-bit integers or
    floats ("I", "F") do not state it. If all their values are whole numbers of at least 0, the top
    is the first of 1, 255 and 65535 that no value exceeds; fractions within [0, 1] have the top 1.
    Other values (depth in metres, negative or larger ones) are stretched from min to max. NaN and
    -inf become black, inf white; neither counts for the range.
    """
    return _to_rgb(image, _stated_top(image))


def _to_rgb(image: Image.Image, top: int | None) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        levels = _deep_to_uint8(values, top)
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            levels[values == clear] = 255
        return Image.fromarray(levels).convert("RGB")
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")  # PIL converts premultiplied grey to nothing else
        layered = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layered)
    return image.convert("RGB")


def _stated_top(image: Image.Image) -> int | None:
    """Return the max value of a deep grey as mode or file state it; None where they do not."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS, (16,))
        return 2 ** bits[0] - 1
    # Pillow scales PGM files of any deep maximum to 16 bits.
    return _MAX_16_BIT if image.mode == "I" and image.format == "PPM" else None


def _deep_to_uint8(values: np.ndarray, top: int | None) -> np.ndarray:
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    if top is None and low >= 0:
        is_whole = np.array_equal(finite, np.round(finite))
        tops = (1, 255, _MAX_16_BIT) if is_whole else (1,)
        top = next((t for t in tops if high <= t), None)
    if top is not None:
        low, high = 0.0, float(top)
    span = (high - low) or 1.0
    values = np.nan_to_num(values, nan=low, posinf=low + span, neginf=low)
    return np.rint((values - low) / span * 255).astype(np.uint8)


def _require_regular(path: str | Path | io.BytesIO) -> None:
    """Refuse pipes and devices, whose reading would block or never end."""
    if isinstance(path, (str, Path)):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for test, name in _KINDS if test(mode)), "something else")
            raise ValueError(f"expected a regular file, got {kind}")


@dataclass(frozen=True)
class ImageProcessor:
    """Resizing with PIL and normalisation with numpy, like the image processors of transformers.

    The whole image is resized to one size without cropping, since every part of it must belong to
    a patch.

    Attributes:
        mean: mean of each channel, subtracted after scaling to [0, 1].
        std: standard deviation of each channel, by which the difference is divided.
        rescale_factor: factor of the 8-bit values.
        resample: PIL resampling filter.
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255
    resample: int = Image.Resampling.BICUBIC

    @classmethod
    def from_file(cls, path: str | Path) -> ImageProcessor:
        """Read a `preprocessor_config.json`; missing fields keep their defaults."""
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
        chosen: dict[str, Any] = {}
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
        """Turn RGB images of any sizes into one batch.

        Args:
            images: B images of mode RGB.
            size: height and width of the result in pixels.

        Returns:
            (B, 3, height, width), float32.
        """
        height, width = size
        batch = np.empty((len(images), 3, height, width), np.float32)
        levels = self._levels()
        for pixels, image in zip(batch, images, strict=True):
            resized = np.asarray(image.resize((width, height), self.resample))  # (height, width, 3)
            for channel in range(3):
                # Every index is in range; the mode that checks it would copy the result.
                np.take(levels[channel], resized[..., channel], out=pixels[channel], mode="clip")
        return torch.from_numpy(batch)

    def _levels(self) -> np.ndarray:
        """Return the normalised value of each 8-bit value, (3, 256) float32."""
        # float64 until the product is rounded once, as in transformers.
        scaled = (np.arange(256, dtype=np.float64) * self.rescale_factor).astype(np.float32)
        mean = np.array(self.mean, np.float32)[:, None]
        return (scaled - mean) / np.array(self.std, np.float32)[:, None]


def to_image(pixels: Tensor) -> Image.Image:
    """Convert pixels (3, h, w) in [0, 1] to an RGB image."""
    levels = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu()
    return Image.fromarray(levels.numpy())
