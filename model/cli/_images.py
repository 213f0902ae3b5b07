"""Reading of images given on the command line, and writing of result images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from setok_cli.errors import UsageError, missing_package

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image


def read_image(path: Path, option: str = "--image") -> Image.Image:
    """Return the image of an option.

    Args:
        path: file of the image.
        option: name of the option or argument in messages.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        from setokim.data.image_processing import UnreadableImageError, load_image
    except ImportError as error:
        raise missing_package(error, "cli,model") from error
    try:
        return load_image(path)
    except UnreadableImageError as error:
        raise UsageError(f"{option}: {error}") from error


def check_out(path: Path, suffixes: Sequence[str]) -> None:
    """Check, before the work, that an image can be written to `--out`.

    Args:
        path: file of the image; its folder is made.
        suffixes: endings of the formats that fit.

    Raises:
        UsageError: the name has another ending, or there can be no such folder.
    """
    if path.suffix.lower() not in suffixes:
        expected = f"a file name ending in {' or '.join(suffixes)}"
        raise UsageError(f"--out: expected {expected}, got {path}")
    make_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make the folder of `--out`.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"--out: cannot make the folder {folder}: {error}") from error


def binary_mask(logits: torch.Tensor) -> np.ndarray:
    """Return (h, w) bool of the logits of an answer's mask."""
    return (logits > 0).cpu().numpy()


def save_mask(mask: np.ndarray, path: Path) -> None:
    """Write a mask in white on black.

    Args:
        mask: (h, w) bool.
        path: file of the image.

    Raises:
        UsageError: the folder cannot be written, or the disk is full.
    """
    from PIL import Image

    save_image(Image.fromarray(mask).convert("L"), path)


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image atomically, in place of an earlier file.

    Args:
        image: image.
        path: file of the image.

    Raises:
        UsageError: the folder cannot be written, or the disk is full.
    """
    from setokim.utils.files import replacing

    try:
        with replacing(path) as beside:
            image.save(beside)
    except OSError as error:
        raise UsageError(f"--out: cannot write {path}: {error}") from error
