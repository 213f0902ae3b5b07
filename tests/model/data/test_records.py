import csv
import json
import os
import threading

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


def test_only_line_feeds_end_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    texts = ["a\u2028b", "c\u2029d", "e\x85f", "g\x0b\x0ch"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join(lines), encoding="utf-8")
    rows = JsonLines(path)
    assert [rows[index]["text"] for index in range(len(rows))] == texts
    path = tmp_path / "a.csv"
    path.write_bytes("id,text\n1,a\u2028b\x85c\n".encode())
    assert CsvRows(path)[0] == {"id": "1", "text": "a\u2028b\x85c"}


def test_byte_order_marks_are_skipped(tmp_path):
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.jsonl").write_bytes(mark + b'{"a": 1}\n{"a": 2}\n')
    lines = JsonLines(tmp_path / "a.jsonl")
    assert [lines[0], lines[1]] == [{"a": 1}, {"a": 2}]
    (tmp_path / "b.jsonl").write_bytes(mark + b"\n[1]\n")
    assert [JsonLines(tmp_path / "b.jsonl")[0], len(JsonLines(tmp_path / "b.jsonl"))] == [[1], 1]
    (tmp_path / "a.json").write_bytes(mark + b"[1]")
    assert read_json(tmp_path / "a.json") == [1] and JsonList(tmp_path / "a.json")[0] == 1
    (tmp_path / "a.csv").write_bytes(mark + b"id,text\n1,a\n")
    assert CsvRows(tmp_path / "a.csv")[0] == {"id": "1", "text": "a"}
    # Of a file without a line of names the first line is a record.
    assert CsvRows(tmp_path / "a.csv", names=("x", "y"))[0] == {"x": "id", "y": "text"}


def test_json_that_is_nested_deep(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' + "[" * 10**5 + "]" * 10**5 + '\n{"a": 2}\n')
    rows = JsonLines(path)
    with pytest.raises(BrokenSampleError, match=r"a\.jsonl:2: no JSON: .* nested too deep$"):
        rows[1]
    assert [rows[0], rows[2]] == [{"a": 1}, {"a": 2}]
    (tmp_path / "a.json").write_text("[" * 10**5)
    with pytest.raises(ValueError, match=r"a\.json: expected JSON, got one nested too deep$"):
        read_json(tmp_path / "a.json")


def test_json_in_another_encoding(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('["le café – so"]'.encode("cp1252"))
    assert read_json(path, "cp1252") == ["le café – so"]
    path.write_bytes(b'["\x81"]')  # of no character there
    with pytest.raises(ValueError, match=r"a\.json: expected UTF-8, got "):
        read_json(path, "cp1252")


def test_long_fields_of_csv(tmp_path):
    path, limit = tmp_path / "a.csv", csv.field_size_limit()
    long = "x" * (limit + 10)
    path.write_text(f'id,text\n1,"{long}"\n2,b\n')
    rows, found = CsvRows(path), []
    assert rows[0] == {"id": "1", "text": long}
    assert csv.field_size_limit() == limit
    threads = [
        threading.Thread(target=lambda: found.append(rows[0]["text"] == long)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8 and csv.field_size_limit() == limit


def test_rows_of_csv_that_are_none(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\n1,a\rb\n2,b\n")
    with pytest.raises(BrokenSampleError, match=r"a\.csv:2: no CSV: new-line character seen"):
        CsvRows(path)[0]
    assert CsvRows(path, columns=("text",))[1]["text"] == "b"
    with pytest.raises(ValueError, match=r"a\.csv:1: expected a column name, got \['id', 'text'\]"):
        CsvRows(path, columns=("id", "name"))


def write_rows(path, rows, size=2):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=size)
    return path


def test_rows_of_parquet_that_do_not_count(tmp_path):
    states = ["ok", "failed", "failed", "failed", None, "ok", "ok"]
    rows = [{"id": number, "status": state} for number, state in enumerate(states)]
    path = write_rows(tmp_path / "a.parquet", rows)
    other = write_rows(tmp_path / "b.parquet", [{"id": 7}, {"id": 8}])
    found = ParquetRows([path, other], where=("status", "ok"))
    assert [found[index]["id"] for index in range(len(found))] == [0, 5, 6, 7, 8]
    assert found.source(1) == f"{path}: row 1 of group 2"
    assert len(ParquetRows([path, other])) == 9


def test_parquet_with_names_that_are_no_text(tmp_path):
    path = write_rows(tmp_path / "a.parquet", [{"abcdef": 1}])
    path.write_bytes(path.read_bytes().replace(b"abcdef", b"abc\xffef"))
    with pytest.raises(ValueError, match=r"a\.parquet: expected a parquet file, got .*codec"):
        ParquetRows([path])


def test_parquet_that_claims_more_than_it_holds(tmp_path, monkeypatch):
    write_rows(tmp_path / "a.parquet", [{"id": number} for number in range(4)])
    rows = ParquetRows([tmp_path / "a.parquet"])
    # The footer is thrift: pyarrow is made to return the values of a damaged one.
    import pyarrow.parquet

    class Lying:
        def __init__(self, path):
            self._file = real(path)
            self.metadata = self
            self.num_columns = 1

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def row_group(self, number):
            return self

        def column(self, number):
            whole = self._file.metadata.row_group(0).column(0)
            return Column(whole.path_in_schema, None, whole.data_page_offset, 2**40)

        def read_row_group(self, number):
            raise AssertionError("nothing may be read")

    class Column:
        def __init__(self, *values):
            names = ("path_in_schema", "dictionary_page_offset", "data_page_offset")
            for name, value in zip((*names, "total_compressed_size"), values, strict=True):
                setattr(self, name, value)

    real = pyarrow.parquet.ParquetFile
    with monkeypatch.context() as patch:
        patch.setattr(pyarrow.parquet, "ParquetFile", Lying)
        with pytest.raises(BrokenSampleError, match=r"group 0: id: expected data within \d+ bytes"):
            rows[0]
    assert rows[0] == {"id": 0}
    # The file is replaced by one with fewer rows.
    write_rows(tmp_path / "a.parquet", [{"id": 0}, {"id": 1}, {"id": 2}])
    with pytest.raises(BrokenSampleError, match=r"row 1 of group 1: expected 2 rows, got 1$"):
        rows[3]
