import io
import json
import re
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.tars import (
    LYING_KINDS,
    LYING_SIZES,
    encoded,
    header,
    lying_header,
    reasons,
    write_lying_tar,
    write_tar,
)
from setokim.data import BrokenSampleError, ImageFolder, Shards


def test_subfolders_are_searched_and_captions_lie_beside_the_images(tmp_path):
    (tmp_path / "b").mkdir()
    Image.new("RGB", (4, 3), "red").save(tmp_path / "c.png")
    Image.new("L", (4, 3), 9).save(tmp_path / "b/d.bmp")
    (tmp_path / "c.txt").write_text("A red card, and a tablé\n", encoding="utf-8")
    folder = ImageFolder(tmp_path)
    assert len(folder) == 2
    grey, red = folder
    assert grey.source == str(tmp_path / "b/d.bmp") and red.source == str(tmp_path / "c.png")
    assert (grey.caption, grey.concepts, grey.masks) == ("", (), None)
    assert red.caption == "A red card, and a tablé" and red.concepts == ("red card", "tablé")
    assert (np.asarray(red.image) == (255, 0, 0)).all() and red.image.size == (4, 3)
    assert (np.asarray(grey.image) == 9).all()
    assert ImageFolder(tmp_path, captions=False)[1].caption == ""
    with pytest.raises(IndexError):
        folder[2]


def test_broken_files_of_a_folder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    Image.new("RGB", (4, 3)).save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xff")
    Image.new("RGB", (4, 3)).save(tmp_path / "c.png")
    folder = ImageFolder(tmp_path)
    (tmp_path / "c.png").unlink()
    found = {name.rsplit("/", 1)[1]: str(error) for name, error in reasons(folder).items()}
    assert found["a.jpg"] == f"{tmp_path / 'a.jpg'}: not an image of a known format"
    assert found["b.png"].startswith(f"{tmp_path / 'b.png'}: cannot read b.txt: 'utf-8'")
    assert found["c.png"] == f"{tmp_path / 'c.png'}: No such file or directory"


def test_folders_without_images(tmp_path):
    with pytest.raises(ValueError, match=r"root: expected a folder, got '.*missing'"):
        ImageFolder(tmp_path / "missing")
    with pytest.raises(ValueError, match="root: expected a folder with images, got none in"):
        ImageFolder(tmp_path)


def test_shards_give_their_keys_in_order(tmp_path):
    write_tar(
        tmp_path / "b.tar",
        [
            ("x/000.jpg", encoded("blue", "jpeg")),
            ("x/000.json", json.dumps({"caption": " a blue card ", "id": 3}).encode()),
            ("x/001.txt", "a tablé and the owl".encode()),
            ("x/001.webp", encoded("red", "webp")),
            ("x/001.seg.png", encoded("green")),
            ("x/001.json", b"not asked, as there is a text"),
        ],
    )
    write_tar(tmp_path / "a.tar", [("x/000.PNG", encoded("lime")), ("readme", b"?")])
    shards = Shards(str(tmp_path / "*.tar"))
    first, second, third = shards
    assert [s.source for s in (first, second, third)] == [
        f"{tmp_path}/a.tar: x/000",
        f"{tmp_path}/b.tar: x/000",
        f"{tmp_path}/b.tar: x/001",
    ]
    assert (first.caption, first.concepts, first.masks) == ("", (), None)
    assert first.image.getpixel((0, 0)) == (0, 255, 0)
    assert (second.caption, second.concepts) == ("a blue card", ("blue card",))
    assert second.image.getpixel((0, 0))[2] > 250
    assert third.concepts == ("tablé", "owl")
    assert third.image.getpixel((0, 0))[0] > 240
    assert [s.source for s in Shards([tmp_path / "b.tar", tmp_path / "a.tar"])] == [
        second.source,
        third.source,
        first.source,
    ]


def test_broken_samples_of_a_shard(tmp_path):
    path = write_tar(
        tmp_path / "s.tar",
        [
            ("good.png", encoded("red")),
            ("alone.txt", b"no picture"),
            ("torn.png", encoded("red")[:40]),
            ("text.png", encoded("red")),
            ("text.txt", b"\xff"),
            ("json.png", encoded("red")),
            ("json.json", b"{"),
            ("list.png", encoded("red")),
            ("list.json", b"[]"),
            ("none.png", encoded("red")),
            ("none.json", b'{"caption": 3}'),
            ("end.png", encoded("red")),
        ],
    )
    found = {name.split(": ")[1]: str(error) for name, error in reasons(Shards(path)).items()}
    assert found.pop("good") == found.pop("end") == ""
    assert found.pop("alone") == f"{path}: alone: it has no image"
    assert found.pop("torn").startswith(f"{path}: torn: cannot read its .png: ")
    assert found.pop("text").startswith(f"{path}: text: cannot read its caption: 'utf-8'")
    assert found.pop("json").startswith(
        f"{path}: json: cannot read its caption: its .json:1:2: expe"
    )
    assert found.pop("list") == f'{path}: list: its .json has no text under "caption"'
    assert found.pop("none") == f'{path}: none: its .json has no text under "caption"'
    assert not found


# Each of the six members has a header and a body of one block of 512 bytes.
@pytest.mark.parametrize(
    ("blocks", "whole", "cut"),
    [
        (11.5, "ab", "c"),  # in the last body
        (10.5, "ab", "c"),  # in its header, so that c has an image and no text
        (10, "ab", "c"),  # before it
        (8.5, "a", "b"),  # in a header, after b's text
        (1.5, "", "a"),
        (12, "ab", "c"),  # complete, but for the end mark
        (14, "abc", ""),
    ],
)
def test_a_truncated_archive_loses_its_last_key(tmp_path, blocks, whole, cut):
    members = [(f"{k}.{s}", d) for k in "abc" for s, d in (("png", encoded("red")), ("txt", b"t"))]
    assert all(len(data) <= 512 for _, data in members)
    path = write_tar(tmp_path / "s.tar", members)
    path.write_bytes(path.read_bytes()[: int(blocks * 512)])
    found = {name.split(": ")[1]: str(text) for name, text in reasons(Shards(path)).items()}
    expected = dict.fromkeys(whole, "t")
    for key in cut:
        reason = found.pop(key)
        # The cause is that of the end mark, or of tarfile.
        causes = r"no end of the archive|ReadError: unexpected end of data"
        start = re.escape(f"{path}: {key}: the archive is truncated or damaged here")
        assert re.fullmatch(rf"{start} \(({causes})\)", reason), reason
    assert found == expected


def test_files_that_are_no_shards(tmp_path):
    (tmp_path / "text.tar").write_bytes(b"hello " * 200)
    with pytest.raises(ValueError, match=r"paths: expected tar archives, got .*text\.tar \("):
        Shards(tmp_path / "text.tar")
    with pytest.raises(ValueError, match=r"paths: expected files, got '.*none-\*\.tar'"):
        Shards(str(tmp_path / "none-*.tar"))
    with pytest.raises(ValueError, match=r"paths: expected files, got '.*absent'"):
        Shards([tmp_path / "absent"])
    write_tar(tmp_path / "other.tar", [("a.pickle", b"")])
    with pytest.raises(ValueError, match="paths: expected archives with images or captions"):
        Shards(tmp_path / "other.tar")


def test_keys_end_at_the_first_dot(tmp_path):
    members = [
        ("a/x.v1.input.jpg", encoded("red", "jpeg")),
        ("a/x.v1.txt", b"ignored"),
        ("a/x.txt", b"a card"),
        ("b.seg.png", encoded("red")),
        ("b.jpg", encoded("blue", "jpeg")),
        ("c.input.jpg", encoded("red", "jpeg")),
        ("c.target.jpg", encoded("red", "jpeg")),
    ]
    path = write_tar(tmp_path / "s.tar", members)
    shards = Shards(path)
    assert [shards.source(index) for index in range(3)] == [
        f"{path}: {k}" for k in ("a/x", "b", "c")
    ]
    assert shards[0].caption == "a card" and shards[0].image.getpixel((0, 0))[0] > 240
    # KEY.jpg comes before KEY.WORD.png, wherever it stands.
    assert shards[1].image.getpixel((0, 0))[2] > 240
    with pytest.raises(
        BrokenSampleError, match=r"c: expected one image, got input\.jpg, target\.jpg$"
    ):
        shards[2]


def test_captions_of_downloads(tmp_path):
    failed = json.dumps({"caption": "a dog", "status": "failed_to_download"}).encode()
    members = [
        ("0.jpg", encoded("red", "jpeg")),
        ("0.json", b'{"caption": null, "status": "success"}'),
        ("1.json", failed),
        ("1.txt", b"a dog"),
        ("2.jpg", encoded("red", "jpeg")),
        ("2.txt", b"\xef\xbb\xbfa dog"),
        ("3.jpg", encoded("red", "jpeg")),
        ("3.json", b'\xef\xbb\xbf{"caption": "a \\ud800 dog"}'),
        ("4.json", b'{"caption": "a dog", "status": "success"}'),
        ("5.json", b"[" * 10**5),
    ]
    path = write_tar(tmp_path / "s.tar", members)
    found = {name.split(": ")[1]: text for name, text in reasons(Shards(path)).items()}
    # A failed download is no sample, and no damage either.
    assert str(found.pop("4")) == f"{path}: 4: it has no image"
    assert str(found.pop("5")) == f"{path}: 5: it has no image"
    assert found == {"0": "", "2": "a dog", "3": "a \ufffd dog"}


@pytest.mark.parametrize("size", LYING_SIZES)
@pytest.mark.parametrize("kind", LYING_KINDS)
def test_sizes_of_members_that_lie(tmp_path, size, kind):
    path = write_lying_tar(tmp_path / "s.tar", kind, size)
    found = {name.split(": ")[1]: str(text) for name, text in reasons(Shards(path)).items()}
    last = "b" if kind == "png" else "a"
    assert found.pop("0") == ""
    reason = re.escape(f"{path}: {last}: the archive is truncated or damaged here")
    assert re.fullmatch(rf"{reason} \((no end of the archive|\w+Error: .+)\)", found.pop(last))
    assert found in ({}, {"a": ""})
    # Where it is the first, nothing is there.
    path.write_bytes(lying_header(kind, size) + bytes(1024))
    try:
        assert all("damaged here" in str(text) for text in reasons(Shards(path)).values())
    except ValueError as error:
        assert str(error).startswith("paths: expected ")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_reads_are_limited_to_the_size_of_the_file(tmp_path, monkeypatch, kind):
    path, asked = tmp_path / "s.tar", []
    path.write_bytes(header("a.png", 2**40, kind) + bytes(1024))

    class Recording(io.BufferedReader):
        def read(self, size=-1):
            asked.append(size)
            return super().read(size)

    monkeypatch.setattr(Path, "open", lambda self, mode: Recording(io.FileIO(self, mode)))
    with pytest.raises(ValueError, match=r"^paths: expected "):
        Shards(path)
    assert len(asked) > 1 and max(asked) <= 1536


def test_an_archive_that_shrinks(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.png", encoded("red")), ("b.png", encoded("red"))])
    shards = Shards(path)
    path.write_bytes(path.read_bytes()[:1100])
    with pytest.raises(BrokenSampleError, match=r"b: its \.png: expected \d+ bytes, got 1100$"):
        shards[1]
    path.unlink()
    with pytest.raises(BrokenSampleError, match=r"b: .*No such file"):
        shards[1]


def test_an_image_that_claims_to_be_huge(tmp_path):
    def chunk(kind, data):
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(bytes(1000)))
    (tmp_path / "a.png").write_bytes(data + chunk(b"IEND", b""))
    with pytest.raises(
        BrokenSampleError, match=r"a\.png: Image size \(10000000000 pixels\) exceeds"
    ):
        ImageFolder(tmp_path)[0]


def test_captions_with_a_byte_order_mark(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa dog\n")
    assert ImageFolder(tmp_path)[0].caption == "a dog"
