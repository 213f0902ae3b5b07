"""Group of images that one set of launches processes."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Chunk:
    """Some images of a batch. Tensors over tokens are those of the whole batch.

    Attributes:
        ok: (T,) int8, 0 for excluded tokens (masked or non-finite).
        offsets: (images + 1,) int64 start of each image among all tokens.
        factor: (images,) power of two that scales the tokens into range.
        sigma: (images,) scale of the squared distances of tokens in range.
        num_ok: (images,) int32 number of tokens that are not excluded; None if not needed.
        longest: maximum number of tokens of an image.
        distances: rows of squared distances, as in `common.Images`; None if not kept.
    """

    ok: Tensor
    offsets: Tensor
    factor: Tensor
    sigma: Tensor
    num_ok: Tensor | None
    longest: int
    distances: Tensor | None = None

    @property
    def images(self) -> int:
        """Number of images."""
        return self.offsets.shape[0] - 1

    @property
    def dense(self) -> bool:
        """True if the distance rows are kept."""
        return self.distances is not None

    def keeping(self, distances: Tensor) -> "Chunk":
        """Return a copy with distance rows."""
        return dataclasses.replace(self, distances=distances)

    def parts(self, size: int) -> Iterator[tuple[slice, "Chunk"]]:
        """Yield parts of `size` images, the last one smaller; one part if `size` is 0."""
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
                    num_ok=None if self.num_ok is None else self.num_ok[cut],
                ),
            )
