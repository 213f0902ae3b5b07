import json
import os

import pytest

from setokim.data import BrokenSampleError
from setokim.data.records import (
    CsvRows,
    JsonLines,
    JsonList,
    Lines,
    ParquetRows,
    read_json,
)


def test_lines_of_json(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"a": 1}\n\n{"b": "é"}\r\n{"c": \n"\xff"\n[4]'.encode("latin-1"))
    rows = JsonLines(path)
    assert len(rows) == 5 and rows[0] == {"a": 1} and rows[4] == [4]
    for number, line, reason in ((1, 3, "no UTF-8"), (2, 4, "no JSON"), (3, 5, "no UTF-8")):
        with pytest.raises(BrokenSampleError) as error:
            rows[number]
        assert error.value.source == f"{path}:{line}" and error.value.reason.startswith(reason)
    # The others are not affected.
    assert rows[4] == [4] and rows.source(4) == f"{path}:6"
    with pytest.raises(IndexError, match="index: expected less than 5, got 5"):
        rows[5]


def test_no_line_is_held(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("first\nother\n", encoding="utf-8")
    lines = Lines(path)
    path.write_text("FIRST\nOTHER\n", encoding="utf-8")
    assert [lines[0], lines[1]] == ["FIRST", "OTHER"]


def test_rows_of_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfid,text\n1,"a, ""b"""\n2\n\n3,\xff\n4,d\n')
    rows = CsvRows(path)
    assert len(rows) == 4 and rows[0] == {"id": "1", "text": 'a, "b"'}
    assert rows[3] == {"id": "4", "text": "d"}
    with pytest.raises(BrokenSampleError, match=r"a\.csv:3: expected 2 fields, got 1$"):
        rows[1]
    with pytest.raises(BrokenSampleError, match=r"a\.csv:5: no UTF-8: "):
        rows[2]


def test_lists_of_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [1, 2], "info": {}}))
    items = JsonList(path, "images")
    assert [items[0], items[1]] == [1, 2] and items.source(1) == f"{path}: images[1]"
    with pytest.raises(ValueError, match=r"a\.json: expected a list under 'info', got dict$"):
        JsonList(path, "info")
    with pytest.raises(ValueError, match=r"a\.json: expected a list, got dict$"):
        JsonList(path)
    path.write_text('{"images": [1,\n 2')
    with pytest.raises(ValueError, match=r"a\.json:2:3: expected JSON, got "):
        read_json(path)
    path.write_bytes(b'"\xff"')
    with pytest.raises(ValueError, match=r"a\.json: expected UTF-8, got "):
        read_json(path)


def test_rows_of_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, start in zip(paths, (0, 5), strict=True):
        table = arrow.table({"id": list(range(start, start + 5)), "data": [b"x"] * 5})
        parquet.write_table(table, path, row_group_size=2)
    rows = ParquetRows(paths)
    assert [rows[i]["id"] for i in range(10)] == list(range(10))
    assert [rows[i]["id"] for i in (9, 0, 4)] == [9, 0, 4]
    assert rows.source(6) == f"{paths[1]}: row 1 of group 0"
    # The second group of the first file is damaged.
    whole = bytearray(paths[0].read_bytes())
    column = parquet.read_metadata(paths[0]).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    whole[start : start + 12] = os.urandom(12)
    paths[0].write_bytes(whole)
    rows = ParquetRows(paths)
    with pytest.raises(BrokenSampleError, match=r"a\.parquet: row 0 of group 1: "):
        rows[2]
    assert rows[0]["id"] == 0 and rows[5]["id"] == 5
    paths[0].write_text("no parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: expected a parquet file, got "):
        ParquetRows(paths)
