"""Images that go through the kernels together."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Chunk:
    """Some images of a batch. Tensors over tokens are those of the whole batch.

    Attributes:
        ok: (T,) int8, tokens that take part.
        offsets: (images + 1,) int64 start of each image among all tokens.
        factor: (images,) power of two that brings the tokens into range.
        sigma: (images,) scale of the squared distances of tokens in range.
        taking_part: (images,) int32 number of tokens that take part.
        longest: most tokens of an image.
        distances: squared distances in rows, as in `common.Images`; None where they are not kept.
    """

    ok: Tensor
    offsets: Tensor
    factor: Tensor
    sigma: Tensor
    taking_part: Tensor
    longest: int
    distances: Tensor | None = None

    @property
    def images(self) -> int:
        """Number of images."""
        return self.offsets.shape[0] - 1

    @property
    def dense(self) -> bool:
        """Whether the rows of distances are kept."""
        return self.distances is not None

    def keeping(self, distances: Tensor) -> "Chunk":
        """With rows of distances."""
        return dataclasses.replace(self, distances=distances)

    def parts(self, size: int) -> Iterator[tuple[slice, "Chunk"]]:
        """Of `size` images each, the last of fewer; of all images at once where it is 0."""
        size = size or self.images
        if size >= self.images:
            yield slice(0, self.images), self
            return
        for first in range(0, self.images, size):
            cut = slice(first, first + size)
            yield (
                cut,
                dataclasses.replace(
                    self,
                    offsets=self.offsets[first : first + size + 1],
                    factor=self.factor[cut],
                    sigma=self.sigma[cut],
                    taking_part=self.taking_part[cut],
                ),
            )
