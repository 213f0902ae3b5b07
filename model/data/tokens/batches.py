"""Images of a batch on their way from a data loading process to the training process."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from setokim.data.stored_image import StoredImage

_PLAIN = ("height", "width", "grid")
_TENSORS = tuple(f.name for f in dataclasses.fields(StoredImage) if f.name not in _PLAIN)


class ImageBatch(Sequence[Image.Image | StoredImage]):
    """Sequence of PIL images and stored images, with the tensors of the latter in a few pieces.

    A data loading process sends every tensor by a file descriptor of its own, and the images of a
    batch have hundreds of tensors.

    Args:
        images: images of either kind, in any order.
    """

    def __init__(self, images: Sequence[Image.Image | StoredImage]):
        stored = [image for image in images if isinstance(image, StoredImage)]
        self._images = [None if isinstance(image, StoredImage) else image for image in images]
        self._plain = [tuple(getattr(image, name) for name in _PLAIN) for image in stored]
        self._columns = {
            name: _Column.of([getattr(image, name) for image in stored]) for name in _TENSORS
        }

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index):
        return list(self)[index]

    def __iter__(self) -> Iterator[Image.Image | StoredImage]:
        columns = {name: iter(column.split()) for name, column in self._columns.items()}
        plain = iter(self._plain)
        for image in self._images:
            if image is not None:
                yield image
                continue
            tensors = {name: next(column) for name, column in columns.items()}
            yield StoredImage(**dict(zip(_PLAIN, next(plain), strict=True)), **tensors)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageBatch:
        """Return the same images with their tensors on another device."""
        return self._moved(lambda flat: flat.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ImageBatch:
        """Return the same images with their tensors in pinned memory, for `DataLoader`."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> ImageBatch:
        moved = copy.copy(self)
        moved._columns = {
            name: dataclasses.replace(column, flat=move(column.flat))
            for name, column in self._columns.items()
        }
        return moved


@dataclass(frozen=True, eq=False)
class _Column:
    """A field of all images in one tensor.

    Attributes:
        flat: elements of all tensors.
        shapes: shape of each tensor; None for an image without it.
    """

    flat: Tensor
    shapes: tuple[tuple[int, ...] | None, ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor | None]) -> _Column:
        given = [tensor.reshape(-1) for tensor in tensors if tensor is not None]
        shapes = tuple(None if tensor is None else tuple(tensor.shape) for tensor in tensors)
        return cls(torch.cat(given) if given else torch.zeros(0), shapes)

    def split(self) -> list[Tensor | None]:
        sizes = [0 if shape is None else math.prod(shape) for shape in self.shapes]
        return [
            None if shape is None else part.view(shape)
            for shape, part in zip(self.shapes, self.flat.split(sizes), strict=True)
        ]
