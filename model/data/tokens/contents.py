"""What the samples of a data set hold: images to encode, stored tokens, or both."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class StoredData(Protocol):
    """Data set all of whose images are `StoredImage`s.

    Attributes:
        model: tokenizer of the images: `fingerprint`, hexadecimal digits of each of its parts;
            `rows`, max number of tokens of an image; `token_dim` and `dtype` of the tokens.
        what: stored fields of the images, among "tokens", "labels", "masks" and "features".
    """

    model: Mapping[str, Any]
    what: Collection[str]


@dataclass(frozen=True)
class Contents:
    """Images of a data set and of all data sets inside it.

    Attributes:
        images: flag of images to encode.
        stored: data sets of stored images.
    """

    images: bool = True
    stored: tuple[StoredData, ...] = ()


def contents_of(dataset: Any) -> Contents:
    """Return what a data set holds.

    A data set around others, such as a mixture, has them as `datasets`. One without any image has
    `holds_images` False.
    """
    if hasattr(dataset, "datasets"):
        parts = [contents_of(one) for one in dataset.datasets]
        stored = tuple(one for part in parts for one in part.stored)
        return Contents(any(part.images for part in parts), stored)
    if isinstance(dataset, StoredData):
        return Contents(False, (dataset,))
    return Contents(getattr(dataset, "holds_images", True))
