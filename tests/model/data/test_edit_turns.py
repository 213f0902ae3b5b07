"""MagicBrush's test split in its authors' zip file, with their password or unpacked."""

import json
import shutil
import zipfile
import zlib

import pytest

from helpers.published import data_of, edit_turns
from setokim.data import BrokenSampleError
from setokim.data.readers import READERS


def check(dataset):
    assert len(dataset) == 3
    for index, (name, turn) in enumerate((("7", 1), ("7", 2), ("8", 1))):
        sample = dataset[index]
        assert sample.facts["img_id"] == name and sample.facts["turn_index"] == turn
        assert sample.facts["instruction"] == f"make it {index}" and sample.task == "edit"
    before, after = (message["content"][0]["image"] for message in dataset[1].messages)
    first = dataset[0].messages[1]["content"][0]["image"]
    # The second turn edits the result of the first.
    assert before.tobytes() == first.tobytes() != after.tobytes()
    assert dataset[1].facts["caption"] == "it is 1" and dataset[2].facts["caption"] is None


def test_zipped_or_unpacked(tmp_path):
    edit_turns(tmp_path)
    (archive,) = tmp_path.glob("*.zip")
    dataset = READERS["magicbrush"](tmp_path, split="test")
    check(dataset)
    assert dataset.source(2) == f"{archive}: edit_turns.json[2]"
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "unpacked")
    check(READERS["magicbrush"](tmp_path / "unpacked", split="test"))
    check(READERS["magicbrush"](tmp_path / "unpacked" / "test", split="test"))
    with pytest.raises(ValueError, match=r"^root: expected train-\*\.parquet in "):
        READERS["magicbrush"](tmp_path, split="train")


def encrypted(data, password):
    """The bytes in the cipher of PKZIP, after a head of twelve."""
    keys = [0x12345678, 0x23456789, 0x34567890]

    def step(value, byte):
        return zlib.crc32(bytes([byte]), value ^ 0xFFFFFFFF) ^ 0xFFFFFFFF

    def update(byte):
        keys[0] = step(keys[0], byte)
        keys[1] = ((keys[1] + (keys[0] & 255)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = step(keys[2], keys[1] >> 24)

    for byte in password:
        update(byte)
    found = bytearray()
    for byte in bytes(11) + bytes([zlib.crc32(data) >> 24]) + data:
        mixed = (keys[2] | 2) & 0xFFFF
        found.append(byte ^ ((mixed * (mixed ^ 1)) >> 8) & 255)
        update(byte)
    return bytes(found)


def lock(path, password):
    """Rewrites an archive with all members encrypted."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, encrypted(data, password))
            info = archive.getinfo(name)
            info.flag_bits |= 1
            info.CRC, info.file_size = zlib.crc32(data), len(data)
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            # The flag stands in the header before the data too.
            whole[info.header_offset + 6] |= 1
    path.write_bytes(whole)


def test_the_published_password(tmp_path):
    edit_turns(tmp_path)
    (archive,) = tmp_path.glob("*.zip")
    whole = archive.read_bytes()
    lock(archive, b"MagicBrush")
    check(READERS["magicbrush"](tmp_path, split="test"))
    archive.write_bytes(whole)
    lock(archive, b"another")
    with pytest.raises(ValueError, match=r"cannot read test/edit_turns\.json in .*password"):
        READERS["magicbrush"](tmp_path, split="test")


def test_damaged_members(tmp_path):
    edit_turns(tmp_path)
    (archive,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "folder")
    folder = tmp_path / "folder" / "test"
    turns = json.loads((folder / "edit_turns.json").read_text())
    turns[2] |= {"input": "../../../edit_turns.json"}
    turns += [{"input": "8-input.png"}, {**turns[0], "output": "7-mask1.png"}]
    turns += [{**turns[0], "input": "9-input.png"}, 3]
    (folder / "edit_turns.json").write_text(json.dumps(turns))
    (folder / "images/7/7-output2.png").write_bytes(data_of()[:50])
    packed = tmp_path / "packed"
    packed.mkdir()
    shutil.make_archive(str(packed / "test"), "zip", folder.parent)
    for root in (folder, packed):
        dataset = READERS["magicbrush"](root, split="test")
        assert dataset[0].facts["img_id"] == "7"
        reasons = {1: "cannot read target_img: ", 2: "expected a file in|edit_turns.json, got none"}
        reasons |= {3: "output: expected str, got None", 4: "output: expected ID-outputN.png, got "}
        reasons |= {5: "9-input.png", 6: "input: expected str, got None"}
        for index, reason in reasons.items():
            with pytest.raises(BrokenSampleError, match=reason):
                dataset[index]


def test_members_that_claim_too_much(tmp_path, monkeypatch):
    edit_turns(tmp_path)
    dataset = READERS["magicbrush"](tmp_path, split="test")
    size = len(data_of())
    monkeypatch.setattr("setokim.data.readers.edit_turns._MAX_BYTES", size // 2)
    with pytest.raises(
        BrokenSampleError, match=rf"7-input\.png: expected at most {size // 2} bytes"
    ):
        dataset[0]
