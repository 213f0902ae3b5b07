"""Shards of stored tokens as tar archives in the layout of webdataset.

An image has the members NUMBER.safetensors, NUMBER.json and, with a caption, NUMBER.txt. Numbers
count from 0 in each shard; names of the source, which may contain dots, are in the JSON.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from types import TracebackType

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from setokim.data.records import json_of
from setokim.data.stored_image import StoredImage
from setokim.data.tokens.layout import DTYPES, FLOATING, Layout, TokenRow

SUFFIX = ".tar"
_STATISTICS = ("sizes", "positions", "seeds")
_TENSORS, _FIELDS, _CAPTION = "safetensors", "json", "txt"


class TarTokenWriter:
    """Writer of a shard, image by image.

    Use it as a context manager; the file is whole when the block ends.

    Args:
        path: file to write.
        layout: what is stored of each image.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, layout: Layout):
        self._layout, self._number = layout, 0
        self._file = tarfile.open(path, "w")  # noqa: SIM115, closed by __exit__

    def __enter__(self) -> TarTokenWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, row: TokenRow) -> None:
        """Append an image.

        Raises:
            OSError: the disk is full.
        """
        image, what = row.image, self._layout.what
        names = [*_STATISTICS, *(name for name in (*FLOATING, "labels") if name in what)]
        tensors: dict[str, Tensor] = {}
        for name in names:
            value = getattr(image, name)
            value = value.to(DTYPES[self._layout.dtype]) if name in FLOATING else value
            tensors[name] = value.contiguous()
        fields = {"key": row.key, "height": image.height, "width": image.width}
        fields["grid"] = list(image.grid)
        self._add(_TENSORS, save(tensors))
        self._add(_FIELDS, json.dumps(fields).encode())
        if row.caption is not None:
            self._add(_CAPTION, row.caption.encode("utf-8"))
        self._number += 1

    def _add(self, suffix: str, data: bytes) -> None:
        # Neither times nor owners: equal images give equal files.
        member = tarfile.TarInfo(f"{self._number:06d}.{suffix}")
        member.size = len(data)
        self._file.addfile(member, io.BytesIO(data))


class TarTokenReader:
    """Reader of a shard by the numbers of its images.

    Args:
        path: file of the shard.

    Raises:
        OSError: the file is missing.
        ValueError: it is no shard of stored tokens, or damaged.
    """

    def __init__(self, path: Path):
        self._path, self._stream = path, path.open("rb")
        self._members: list[dict[str, tuple[int, int]]] = []
        try:
            with tarfile.open(fileobj=self._stream, mode="r:") as archive:
                for member in archive:
                    number, _, suffix = member.name.partition(".")
                    if int(number) == len(self._members):
                        self._members.append({})
                    if int(number) != len(self._members) - 1:
                        raise ValueError(f"member {member.name} out of order")
                    self._members[-1][suffix] = (member.offset_data, member.size)
        except (tarfile.TarError, ValueError) as error:
            self.close()
            raise ValueError(f"{path}: expected stored tokens, got {error}") from error

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: int) -> TokenRow:
        """Read an image.

        Raises:
            ValueError: the image is damaged.
        """
        try:
            members = self._members[index]
            fields = json_of(self._bytes(members[_FIELDS]), _FIELDS)
            tensors = load(self._bytes(members[_TENSORS]))
            caption = None
            if _CAPTION in members:
                caption = self._bytes(members[_CAPTION]).decode("utf-8")
            image = StoredImage(
                height=fields["height"],
                width=fields["width"],
                grid=tuple(fields["grid"]),
                **dict.fromkeys(("tokens", "labels", "masks", "features")) | tensors,
            )
            return TokenRow(fields["key"], caption, image)
        except (OSError, ValueError, TypeError, LookupError, SafetensorError) as error:
            raise ValueError(f"{self._path}: image {index}: {error}") from error

    def _bytes(self, place: tuple[int, int]) -> bytes:
        start, length = place
        self._stream.seek(start)
        data = self._stream.read(length)
        if len(data) != length:
            raise ValueError(f"expected {length} bytes at {start}, got {len(data)}")
        return data

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
