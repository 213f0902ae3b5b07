"""Stored images of random values, and folders of them."""

import torch

from setokim.data.stored_image import StoredImage
from setokim.data.tokens.layout import KINDS, Layout, TokenRow
from setokim.data.tokens.manifest import Manifest, Shard, append_shard, write_manifest
from setokim.data.tokens.parquet import ParquetTokenWriter
from setokim.utils.checksums import checksum

GRID, DIM, FEATURES = (1, 4, 3), 12, 7
EVERYTHING = Layout(KINDS, "fp32")


def stored_image(seed=0, number=5):
    """An image of 4 x 3 patches with `number` tokens."""
    generator = torch.Generator().manual_seed(seed)
    return StoredImage(
        height=64,
        width=48,
        grid=GRID,
        tokens=torch.randn(number, DIM, generator=generator),
        sizes=torch.randint(1, 9, (number,), generator=generator),
        positions=torch.rand(number, 3, generator=generator),
        seeds=torch.arange(number) - 1,
        labels=torch.randint(0, number, (12,), generator=generator),
        masks=torch.rand(number, 12, generator=generator),
        features=torch.randn(12, FEATURES, generator=generator),
    )


def token_rows(number, seed=0):
    """Rows with and without captions, of 1 to 5 tokens."""
    return [
        TokenRow(
            f"a.{i}.jpg", None if i % 3 == 0 else f"käse {i}", stored_image(seed + i, 1 + i % 5)
        )
        for i in range(number)
    ]


def write_token_folder(folder, shards, layout=EVERYTHING, parts=None):
    """Write a folder with a parquet shard for each list of rows; `parts` is that of a whole one."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = {"fingerprint": {}, "rows": 6, "token_dim": DIM, "feature_dim": FEATURES}
    write_manifest(
        folder,
        Manifest({}, tokenizer, layout, "parquet", False, parts or len(shards), "plan", {}),
    )
    for number, rows in enumerate(shards):
        path = folder / f"{number:06d}.parquet"
        with ParquetTokenWriter(path, layout) as writer:
            for row in rows:
                writer.add(row)
        files = ((path.name, path.stat().st_size, checksum(path)),)
        tokens = sum(len(row.image.sizes) for row in rows)
        append_shard(folder, Shard(number, files, len(rows), len(rows), tokens))
    return folder
