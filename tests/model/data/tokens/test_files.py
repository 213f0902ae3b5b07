"""Parquet and tar files of stored tokens."""

import json
import tarfile

import numpy as np
import pyarrow.parquet
import pytest
import torch

from helpers.stored import EVERYTHING, stored_image, token_rows
from setokim.data.tokens.layout import DTYPES, FLOATING, KINDS, Layout, from_bytes, to_bytes
from setokim.data.tokens.parquet import ParquetTokenReader, ParquetTokenWriter
from setokim.data.tokens.tar import TarTokenReader, TarTokenWriter

FORMATS = [
    pytest.param(ParquetTokenWriter, ParquetTokenReader, id="parquet"),
    pytest.param(TarTokenWriter, TarTokenReader, id="webdataset"),
]
FIELDS = ("sizes", "positions", "seeds", "labels", *FLOATING)


def write(writer, path, rows, layout=EVERYTHING):
    with writer(path, layout) as file:
        for row in rows:
            file.add(row)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("writer", "reader"), FORMATS)
def test_every_field_comes_back(tmp_path, writer, reader, dtype):
    rows = token_rows(35)  # three row groups, the last one short
    file = reader(write(writer, tmp_path / "s", rows, Layout(KINDS, dtype)))
    assert len(file) == 35
    for index in (34, 0, 16, 17, 15):
        found, wanted = file[index], rows[index]
        assert (found.key, found.caption) == (wanted.key, wanted.caption)
        assert (found.image.height, found.image.width) == (64, 48)
        assert found.image.grid == wanted.image.grid
        for name in FIELDS:
            value = getattr(wanted.image, name)
            value = value.to(DTYPES[dtype]) if name in FLOATING else value
            assert torch.equal(getattr(found.image, name), value), name
            assert getattr(found.image, name).dtype == value.dtype


@pytest.mark.parametrize(("writer", "reader"), FORMATS)
def test_what_is_not_stored_is_none(tmp_path, writer, reader):
    found = reader(write(writer, tmp_path / "s", token_rows(2), Layout(("tokens",), "bf16")))[1]
    assert (found.image.labels, found.image.masks, found.image.features) == (None, None, None)
    assert found.image.tokens is not None
    found = reader(write(writer, tmp_path / "t", token_rows(2), Layout(("labels",), "bf16")))[1]
    assert found.image.tokens is None


@pytest.mark.parametrize(("writer", "reader"), FORMATS)
def test_equal_rows_give_equal_bytes(tmp_path, writer, reader):
    one, two = (write(writer, tmp_path / name, token_rows(20)) for name in "ab")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(("writer", "reader"), FORMATS)
@pytest.mark.parametrize("kept", [0, 10, 3000])
def test_a_cut_file_is_named(tmp_path, writer, reader, kept):
    path = write(writer, tmp_path / "shard", token_rows(20))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="shard"):
        file = reader(path)
        for index in range(20):
            file[index]


def test_other_programs_read_the_parquet_file(tmp_path):
    rows = token_rows(3)
    path = write(ParquetTokenWriter, tmp_path / "s", rows, Layout(("tokens", "labels"), "fp16"))
    table = pyarrow.parquet.read_table(path)
    assert table.schema.metadata[b"setok.dtype"] == b"fp16"
    [row] = table.slice(2, 1).to_pylist()
    tokens = np.frombuffer(row["tokens"], np.float16).reshape(len(row["sizes"]), -1)
    assert np.array_equal(tokens, rows[2].image.tokens.half().numpy())
    assert row["labels"] == rows[2].image.labels.tolist()


def test_other_programs_read_the_archive(tmp_path):
    path = write(TarTokenWriter, tmp_path / "s.tar", token_rows(2))
    with tarfile.open(path) as archive:
        assert archive.getnames() == [
            *("000000.safetensors", "000000.json"),
            *("000001.safetensors", "000001.json", "000001.txt"),
        ]
        fields = json.load(archive.extractfile("000001.json"))
    assert fields == {"key": "a.1.jpg", "height": 64, "width": 48, "grid": [1, 4, 3]}


def test_another_parquet_file_is_refused(tmp_path):
    path = tmp_path / "other.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"sizes": [1]}), path)
    with pytest.raises(ValueError, match=r"other.parquet: expected stored tokens, got columns"):
        ParquetTokenReader(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bytes_of_no_rows(dtype):
    assert to_bytes(torch.zeros(0, 4, dtype=dtype)) == b""
    assert from_bytes(b"", dtype, 0).shape == (0, 0)
    with pytest.raises(ValueError, match="expected a multiple of"):
        from_bytes(b"abc", dtype, 2)
    with pytest.raises(ValueError, match="expected no bytes"):
        from_bytes(b"abcd", dtype, 0)


@pytest.mark.parametrize(
    ("what", "dtype", "message"),
    [
        (("token",), "bf16", r"^what: expected names among tokens, .*, got 'token'$"),
        (("masks",), "bf16", r"^what: expected tokens, labels or features, got 'masks'$"),
        (("tokens",), "int8", r"^dtype: expected one of bf16, fp16, fp32, got 'int8'$"),
    ],
)
def test_a_layout_that_does_not_fit(what, dtype, message):
    with pytest.raises(ValueError, match=message):
        Layout(what, dtype)


def test_shapes_of_a_record_fit_together():
    image = stored_image()
    assert torch.equal(image.seed_positions[:2], torch.tensor([[-1.0] * 3, [0.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"^labels: expected shape \(12,\), got \(11,\)$"):
        type(image)(**image.__dict__ | {"labels": image.labels[1:]})
