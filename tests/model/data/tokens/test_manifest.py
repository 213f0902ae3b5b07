"""Manifest and list of shards of a folder of stored tokens."""

import json

import pytest

from helpers.stored import EVERYTHING, token_rows, write_token_folder
from setokim.data.tokens.manifest import (
    Manifest,
    Shard,
    TokenFolderError,
    append_shard,
    differences,
    read_manifest,
    read_shards,
    write_manifest,
    write_shards,
)

MANIFEST = Manifest({"a": {"b": 1}}, {"fingerprint": {"encoder": "x"}}, EVERYTHING, "parquet",
                    True, 3, "plan", {"torch": "2"})  # fmt: skip


def shard(part, **fields):
    return Shard(part, (("a.parquet", 3, "00"),), 1, 1, 4, **fields)


def test_a_manifest_comes_back(tmp_path):
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST


def test_differences_have_dotted_names():
    other = Manifest({"a": {"b": 2}}, {"fingerprint": {"encoder": "x", "merger": "y"}}, EVERYTHING,
                     "webdataset", True, 3, "plan", {"torch": "2"})  # fmt: skip
    found = ["format", "settings.a.b", "tokenizer.fingerprint.merger"]
    assert differences(MANIFEST, other) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"^path: expected a folder that `setok tokenize` wrote, with manifest.json, got"),
        ("{", r"manifest.json.*expected JSON"),
        ("[]", r"manifest.json: .*expected keys and values"),
        ('{"version": 2}', "manifest.json"),
    ],
)
def test_a_damaged_manifest(tmp_path, text, message):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(TokenFolderError, match=message):
        read_manifest(tmp_path)


def test_another_version_is_refused(tmp_path):
    write_manifest(tmp_path, MANIFEST)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    with pytest.raises(TokenFolderError, match="version: expected 1, got 2"):
        read_manifest(tmp_path)


def test_shards_are_appended_then_sorted(tmp_path):
    assert read_shards(tmp_path, 3) == {}
    broken = (("k\udc80", "no image"),)
    for one in (shard(2), shard(0, broken=broken)):
        append_shard(tmp_path, one)
    found = read_shards(tmp_path, 3)
    assert found == {2: shard(2), 0: shard(0, broken=broken)}
    write_shards(tmp_path, found.values())
    assert list(read_shards(tmp_path, 3)) == [0, 2]


def test_half_a_line_of_a_killed_writer_is_removed(tmp_path):
    append_shard(tmp_path, shard(0))
    path = tmp_path / "shards.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert list(read_shards(tmp_path, 3)) == [0]
    assert path.read_bytes() != whole
    assert list(read_shards(tmp_path, 3, repair=True)) == [0]
    assert path.read_bytes() == whole
    append_shard(tmp_path, shard(1))
    assert list(read_shards(tmp_path, 3)) == [0, 1]


@pytest.mark.parametrize(
    "line", [b"{}", b"\xff", b"[1]", b"null", json.dumps({"part": 1}).encode()]
)
def test_a_damaged_line_is_named(tmp_path, line):
    append_shard(tmp_path, shard(0))
    with (tmp_path / "shards.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(TokenFolderError, match=r"shards.jsonl:2: "):
        read_shards(tmp_path, 3)


def test_a_part_twice_or_out_of_range(tmp_path):
    append_shard(tmp_path, shard(0))
    append_shard(tmp_path, shard(0))
    with pytest.raises(TokenFolderError, match="part: expected each of 0 to 2 once, got 0"):
        read_shards(tmp_path, 3)
    write_shards(tmp_path, [shard(3)])
    with pytest.raises(TokenFolderError, match="part: expected each of 0 to 2 once, got 3"):
        read_shards(tmp_path, 3)


def test_the_helper_writes_what_is_read(tmp_path):
    write_token_folder(tmp_path, [token_rows(2), token_rows(3)])
    assert [one.samples for one in read_shards(tmp_path, 2).values()] == [2, 3]
