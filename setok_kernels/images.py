"""Selection of images from a batched result."""

import dataclasses
import itertools
import operator
from typing import Any, TypeVar

import torch
from torch import Tensor

from setok_kernels.pytrees import map_tensors
from setok_kernels.records import check_record

_Record = TypeVar("_Record")

# Fields of packed results with one entry an image; all others have one a token.
_PER_IMAGE = ("counts", "centres", "seeds")


def image_number(index, images: int, expected: str = "an int") -> int:
    """Return the index of an image of a batch; negative ones count from the end.

    Raises:
        TypeError: `index` is no integer.
        IndexError: there is no such image.
    """
    try:
        number = operator.index(index)
    except TypeError as error:
        raise TypeError(f"index: expected {expected}, got {index!r}") from error
    if not -images <= number < images:
        wanted = f"a value from {-images} to {images - 1}" if images else "none of 0 images"
        raise IndexError(f"index: expected {wanted}, got {number}")
    return number % images


def select_images(out: _Record, index) -> _Record:
    """Return some images of a result as a result; views of its tensors where they are consecutive.

    Args:
        out: result of a clustering. If packed, its offsets are read, which waits for the device.
        index: index of an image, or a slice.

    Raises:
        TypeError, IndexError: `index` does not fit.
        TypeError, ValueError: a field of the result does not fit; the message names it.
    """
    record: Any = out
    check_record(record)
    images = record.counts.shape[0]
    if isinstance(index, slice):
        chosen = range(images)[index]
    else:
        number = image_number(index, images, "an int or a slice")
        chosen = range(number, number + 1)
    offsets: Tensor | None = record.cu_seqlens
    if offsets is None:
        return map_tensors(out, lambda _, value: _take(value, 0, _spans(chosen)))

    bounds = [*itertools.pairwise(offsets.tolist())]
    tokens = [bounds[image] for image in chosen]
    lengths = [end - start for start, end in tokens]
    starts = [0, *itertools.accumulate(lengths)]
    cu_seqlens = torch.tensor(starts, dtype=offsets.dtype, device=offsets.device)

    def pick(name: str, value: Tensor) -> Tensor:
        if name == "cu_seqlens":
            return cu_seqlens
        if name in _PER_IMAGE:
            return _take(value, 0, _spans(chosen))
        return _take(value, -1 if name == "masks" else 0, tokens)

    packed = map_tensors(record, pick)
    return dataclasses.replace(packed, max_seqlen=max(lengths, default=0))


def _spans(images: range) -> list[tuple[int, int]]:
    return [(image, image + 1) for image in images]


def _take(value: Tensor, axis: int, spans: list[tuple[int, int]]) -> Tensor:
    """Concatenate spans of an axis; a view if each starts where the one before ends."""
    if all(end == start for (_, end), (start, _) in itertools.pairwise(spans)):
        start, end = (spans[0][0], spans[-1][1]) if spans else (0, 0)
        return value.narrow(axis, start, end - start)
    return torch.cat([value.narrow(axis, start, end - start) for start, end in spans], axis)
