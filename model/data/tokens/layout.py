"""What the files of stored tokens share: data types, and the fields of an image's record."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from setokim.data.stored_image import StoredImage

# Names of data types on the command line and in files.
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# What may be stored of an image. Sizes, positions and seeds are stored in any case.
KINDS = ("tokens", "labels", "masks", "features")
# Fields in the data type of the folder; their second dimension is not in the record.
FLOATING = ("tokens", "masks", "features")


@dataclass(frozen=True)
class Layout:
    """What a folder stores of each image, and in which data type.

    Attributes:
        what: names among `KINDS`, in their order.
        dtype: name among `DTYPES`.

    Raises:
        ValueError: a name is unknown, or there are neither tokens nor features nor labels.
    """

    what: tuple[str, ...]
    dtype: str

    def __post_init__(self):
        for name in self.what:
            if name not in KINDS:
                raise ValueError(f"what: expected names among {', '.join(KINDS)}, got {name!r}")
        if not set(self.what) - {"masks"}:
            got = ",".join(self.what)
            raise ValueError(f"what: expected tokens, labels or features, got {got!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")


@dataclass(frozen=True, eq=False)
class TokenRow:
    """An image's record in a shard.

    Attributes:
        key: name of the image in its source.
        caption: text of the image; None without one.
        image: its tokens.
    """

    key: str
    caption: str | None
    image: StoredImage


def to_bytes(x: Tensor) -> bytes:
    """Return the values of a contiguous CPU tensor, little-endian."""
    return x.contiguous().view(torch.uint8).numpy().tobytes()


def from_bytes(data: bytes, dtype: torch.dtype, rows: int) -> Tensor:
    """Return the tensor (rows, ...) of `to_bytes`; without rows its shape is (0, 0).

    Raises:
        ValueError: the number of bytes does not fit.
    """
    size = dtype.itemsize
    if not rows:
        if data:
            raise ValueError(f"expected no bytes for 0 rows, got {len(data)}")
        return torch.zeros(0, 0, dtype=dtype)
    if len(data) % (rows * size):
        raise ValueError(f"expected a multiple of {rows * size} bytes, got {len(data)}")
    # A copy: the bytes are not writable, and not aligned.
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(rows, -1)
