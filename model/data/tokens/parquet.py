"""Shards of stored tokens as parquet files: a row for each image, readable without this package.

Floating-point columns are the bytes of their matrices, little-endian and by rows, since parquet has
no bfloat16; the metadata of the schema says which data type. Row groups are small, because training
reads rows in random order.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from setok_kernels.extras import from_extra
from setokim.data.stored_image import StoredImage
from setokim.data.tokens.layout import DTYPES, FLOATING, Layout, TokenRow, from_bytes, to_bytes

SUFFIX = ".parquet"
_GROUP = 16  # rows


class ParquetTokenWriter:
    """Writer of a shard, group by group: memory does not grow with the shard.

    Use it as a context manager; the file is whole when the block ends.

    Args:
        path: file to write.
        layout: what is stored of each image.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, layout: Layout):
        with from_extra("tokenize"):
            import pyarrow
            import pyarrow.parquet
        self._layout, self._schema = layout, _schema(layout)
        self._waiting: list[dict[str, Any]] = []
        compressed = [name for name in self._schema.names if name not in FLOATING]
        self._file: Any = pyarrow.parquet.ParquetWriter(
            path,
            self._schema,
            # Floating-point values do not compress, and take time to try.
            compression={
                name: "zstd" if name in compressed else "none" for name in self._schema.names
            },
            use_dictionary=False,
            write_statistics=False,
        )

    def __enter__(self) -> ParquetTokenWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._file.close()

    def add(self, row: TokenRow) -> None:
        """Append a row.

        Raises:
            OSError: the disk is full.
        """
        self._waiting.append(_to_columns(row, self._layout))
        if len(self._waiting) == _GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._waiting:
            table = pyarrow.Table.from_pylist(self._waiting, schema=self._schema)
            self._file.write_table(table, row_group_size=_GROUP)
            self._waiting = []


class ParquetTokenReader:
    """Reader of a shard by row numbers. It keeps the last row group.

    Args:
        path: file of the shard.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: the file is missing.
        ValueError: it is no shard of stored tokens, or damaged.
    """

    def __init__(self, path: Path):
        with from_extra("tokenize"):
            import pyarrow
            import pyarrow.parquet
        self._path = path
        try:
            self._file: Any = pyarrow.parquet.ParquetFile(path)
            metadata = self._file.schema_arrow.metadata or {}
            names = self._file.schema_arrow.names
        except FileNotFoundError:
            raise
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise ValueError(f"{path}: expected a parquet file, got {error}") from error
        dtype = metadata.get(b"setok.dtype", b"").decode("ascii", "replace")
        if dtype not in DTYPES or "sizes" not in names:
            raise ValueError(f"{path}: expected stored tokens, got columns {names}")
        self._dtype, self._kept = DTYPES[dtype], (-1, None)

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def __getitem__(self, index: int) -> TokenRow:
        """Read a row.

        Raises:
            ValueError: the row is damaged.
        """
        import pyarrow

        group, row = divmod(index, _GROUP)
        try:
            if self._kept[0] != group:
                self._kept = (group, self._file.read_row_group(group))
            [columns] = self._kept[1].slice(row, 1).to_pylist()
            return _from_columns(columns, self._dtype)
        except (OSError, ValueError, TypeError, KeyError, pyarrow.ArrowException) as error:
            raise ValueError(f"{self._path}: row {index}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _schema(layout: Layout) -> Any:
    import pyarrow as pa

    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("caption", pa.string()),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("grid", pa.list_(pa.int32(), 3), nullable=False),
        pa.field("sizes", pa.list_(pa.int32()), nullable=False),
        pa.field("positions", pa.list_(pa.list_(pa.float32(), 3)), nullable=False),
        pa.field("seeds", pa.list_(pa.int32()), nullable=False),
    ]
    if "labels" in layout.what:
        fields.append(pa.field("labels", pa.list_(pa.int16()), nullable=False))
    fields += [
        pa.field(name, pa.binary(), nullable=False) for name in FLOATING if name in layout.what
    ]
    return pa.schema(fields, metadata={"setok.dtype": layout.dtype})


def _to_columns(row: TokenRow, layout: Layout) -> dict[str, Any]:
    image = row.image
    columns: dict[str, Any] = {
        "key": row.key,
        "caption": row.caption,
        "height": image.height,
        "width": image.width,
        "grid": list(image.grid),
        "sizes": image.sizes.tolist(),
        "positions": image.positions.tolist(),
        "seeds": image.seeds.tolist(),
    }
    if "labels" in layout.what:
        assert image.labels is not None
        columns["labels"] = image.labels.tolist()
    for name in FLOATING:
        if name in layout.what:
            columns[name] = to_bytes(getattr(image, name).to(DTYPES[layout.dtype]))
    return columns


def _from_columns(columns: dict[str, Any], dtype: torch.dtype) -> TokenRow:
    sizes = torch.tensor(columns["sizes"], dtype=torch.int64)
    labels = columns.get("labels")
    frames, height, width = columns["grid"]
    rows = dict.fromkeys(FLOATING, len(sizes)) | {"features": frames * height * width}
    image = StoredImage(
        height=columns["height"],
        width=columns["width"],
        grid=(frames, height, width),
        sizes=sizes,
        positions=torch.tensor(columns["positions"], dtype=torch.float32).reshape(-1, 3),
        seeds=torch.tensor(columns["seeds"], dtype=torch.int64),
        labels=None if labels is None else torch.tensor(labels, dtype=torch.int64),
        **{
            name: from_bytes(columns[name], dtype, rows[name]) if name in columns else None
            for name in FLOATING
        },
    )
    return TokenRow(columns["key"], columns["caption"], image)
