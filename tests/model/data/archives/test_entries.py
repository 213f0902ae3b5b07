import bz2
import gzip
import json
import lzma
import re
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import fsspec
import numpy as np
import pytest

from helpers.file_server import served
from helpers.tars import (
    LYING_KINDS,
    LYING_SIZES,
    add_reason,
    encoded,
    header,
    reasons,
    write_lying_tar,
    write_tar,
)
from setokim.data import BrokenSampleError, Shards
from setokim.data.archives import SourceError, read_entries


def streamed(name):
    """Caption or error of every entry, by its source."""
    found = {}
    for entry in read_entries(name):
        before = len(found)
        add_reason(found, entry.load)
        assert len(found) == before + 1 and list(found)[-1] == entry.source
    return found


def texts(found):
    return {name: str(text) for name, text in found.items()}


FAILED = json.dumps({"caption": "a dog", "status": "failed_to_download"}).encode()
MEMBERS = [
    ("readme", b"?"),
    ("x/000.jpg", encoded("blue", "jpeg")),
    ("x/000.json", json.dumps({"caption": " a blue card ", "id": 3}).encode()),
    ("x/001.txt", "a tablé and the owl".encode()),
    ("x/001.cls", b"7"),
    ("x/001.seg.png", encoded("green")),
    ("x/001.webp", encoded("red", "webp")),
    ("x/001.webp", b"a second one"),
    ("x/002.v1.input.PNG", encoded("lime")),
    ("failed.json", FAILED),
    ("alone.txt", b"no picture"),
    ("torn.png", encoded("red")[:40]),
    ("text.png", encoded("red")),
    ("text.txt", b"\xff"),
    ("list.png", encoded("red")),
    ("list.json", b"[]"),
    ("two.a.jpg", encoded("red", "jpeg")),
    ("two.b.jpg", encoded("red", "jpeg")),
    ("lone.jpg", encoded("red", "jpeg")),
    ("lone.json", b'{"caption": "a \\ud800 dog"}'),
    ("deep.json", b"[" * 10**5),
    ("end.png", encoded("red")),
    ("end.txt", b"\xef\xbb\xbfthe end"),
]


def test_entries_come_in_order_as_shards_give_them(tmp_path):
    path = write_tar(tmp_path / "s.tar", MEMBERS)
    entries = list(read_entries(path))
    keys = ["x/000", "x/001", "x/002", "alone", "torn", "text", "list", "two", "lone", "deep"]
    assert [entry.key for entry in entries] == [*keys, "end"]
    assert [entry.source for entry in entries] == [f"{path}: {entry.key}" for entry in entries]
    shards = Shards(path)
    found = streamed(path)
    assert texts(found) == texts(reasons(shards)) and list(found) == list(reasons(shards))
    for index, entry in enumerate(entries):
        if isinstance(found[entry.source], str):
            sample, stored = entry.load(), shards[index]
            assert np.array_equal(np.asarray(sample.image), np.asarray(stored.image))
            assert (sample.caption, sample.concepts) == (stored.caption, stored.concepts)
    assert found[f"{path}: lone"] == "a \ufffd dog"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path, format):
    name = "folder/" * 12 + "k" * 70 if format == tarfile.USTAR_FORMAT else "é" * 300
    with tarfile.open(tmp_path / "s.tar", "w", format=format) as archive:
        for suffix, data in (("png", encoded("red")), ("txt", b"t")):
            (tmp_path / "member").write_bytes(data)
            archive.add(tmp_path / "member", f"{name}.{suffix}")
        archive.add(tmp_path, "folder.png", recursive=False)
    assert streamed(tmp_path / "s.tar") == {f"{tmp_path / 's.tar'}: {name}": "t"}


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_archives(tmp_path, kind):
    plain = write_tar(tmp_path / "s.tar", MEMBERS)
    expected = [text.partition(": ")[2] for text in texts(streamed(plain))]
    path = write_tar(tmp_path / "s.packed", MEMBERS, kind)
    assert [text.partition(": ")[2] for text in texts(streamed(path))] == expected


def test_a_key_that_occurs_again_is_broken(tmp_path):
    png = encoded("red")
    members = [("a.png", png), ("b.png", png), ("a.txt", b"t"), ("c.png", png), ("a.png", png)]
    path = write_tar(tmp_path / "s.tar", members)
    entries = list(read_entries(path))
    assert [entry.key for entry in entries] == ["a", "b", "a", "c", "a"]
    assert [entry.load().caption for entry in (entries[0], entries[1], entries[3])] == [""] * 3
    for entry in (entries[2], entries[4]):
        with pytest.raises(BrokenSampleError, match="a: its key stands at two places of the arc"):
            entry.load()


# Each of the six members has a header and a body of one block of 512 bytes.
@pytest.mark.parametrize("halves", range(0, 30))
def test_truncated_archives_are_read_as_by_shards(tmp_path, halves):
    members = [(f"{k}.{s}", d) for k in "abc" for s, d in (("png", encoded("red")), ("txt", b"t"))]
    path = write_tar(tmp_path / "s.tar", [*members, ("other.cls", b"1")])
    path.write_bytes(path.read_bytes()[: halves * 256])
    assert outcome(lambda: streamed(path)) == outcome(lambda: reasons(Shards(path)))


def outcome(read):
    try:
        found = texts(read())
    except ValueError as error:
        return str(error)
    # An empty list and no member of use are the same for a stream.
    return found or "paths: expected archives with images or captions, got none"


@pytest.mark.parametrize("seed", range(40))
def test_damaged_archives_are_read_as_by_shards(tmp_path, seed):
    generator = np.random.default_rng(seed)
    path = write_tar(tmp_path / "s.tar", MEMBERS)
    data = bytearray(path.read_bytes()[: 40 * 512])
    for place in generator.integers(0, len(data), 12):
        data[place] = generator.integers(256)
    path.write_bytes(data)
    assert outcome(lambda: streamed(path)) == outcome(lambda: reasons(Shards(path)))


@pytest.mark.parametrize("size", LYING_SIZES)
@pytest.mark.parametrize("kind", LYING_KINDS)
def test_sizes_of_members_that_lie(tmp_path, size, kind):
    path = write_lying_tar(tmp_path / "s.tar", kind, size)
    found = {name.split(": ")[1]: str(text) for name, text in streamed(path).items()}
    last = "b" if kind == "png" else "a"
    assert found.pop("0") == ""
    reason = re.escape(f"{path}: {last}: the archive is truncated or damaged here")
    assert re.fullmatch(rf"{reason} \((no end of the archive|\w+Error: .+)\)", found.pop(last))
    assert found in ({}, {"a": ""})


def sparse_archive(path, members):
    """Write members of zeros that take no place on the disk, as (name, size)."""
    with path.open("wb") as file:
        for name, size in members:
            file.write(header(name, size))
            file.seek(-(-size // 512) * 512, 1)
        file.write(bytes(1024))


@pytest.mark.parametrize(
    "members",
    [
        [("a.png", 2**29), ("b.png", 0)],
        [*((f"a.{n}.png", 2**25) for n in range(12)), ("b.png", 0)],
    ],
)
def test_large_members_are_not_held_in_memory(tmp_path, members, monkeypatch):
    monkeypatch.setattr("setokim.data.archives.entries.MAX_BYTES", 2**26)
    monkeypatch.setattr("setokim.data.archives.members.MAX_BYTES", 2**26)
    monkeypatch.setattr("setokim.data.shards.MAX_BYTES", 2**26)
    path = tmp_path / "s.tar"
    sparse_archive(path, members)
    tracemalloc.start()
    try:
        found = texts(streamed(path))
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()
    if len(members) == 2:
        reason = f"{path}: a: its .png: expected at most 67108864 bytes, got 536870912"
        assert found[f"{path}: a"] == texts(reasons(Shards(path)))[f"{path}: a"] == reason
    else:
        assert (
            "expected one image, got 0.png, 1.png, 2.png, 3.png, 4.png and 7 more"
            in found[f"{path}: a"]
        )
    assert len(found) == 2


def test_threads_may_load_the_entries(tmp_path):
    members = [(f"{n:03d}.png", encoded((n, 0, 0))) for n in range(60)]
    path = write_tar(tmp_path / "s.tar", members)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda entry: entry.load(), read_entries(path)))
    assert [sample.image.getpixel((0, 0))[0] for sample in found] == list(range(60))


@pytest.mark.parametrize(
    "packer", [gzip.compress, partial(bz2.compress, compresslevel=1), lzma.compress]
)
def test_compressed_archives_that_are_cut_off(tmp_path, packer):
    generator = np.random.default_rng(0)
    members = [(f"{n}.txt", generator.bytes(2000)) for n in range(200)]
    members = [
        entry
        for n, (name, data) in enumerate(members)
        for entry in ((f"{n}.png", encoded("red")), (name, data.hex().encode()))
    ]
    whole = packer(write_tar(tmp_path / "s.tar", members).read_bytes())
    path = tmp_path / "s.packed"
    path.write_bytes(whole[: len(whole) // 2])
    entries = list(read_entries(path))
    assert 0 < len(entries) < 200
    for n, entry in enumerate(entries[:-1]):
        assert entry.load().caption == members[2 * n + 1][1].decode()
    with pytest.raises(BrokenSampleError, match=r"the archive is truncated or damaged here \(EOF"):
        entries[-1].load()
    # Random access to a copy gives the same samples.
    shards = Shards(path, cache=tmp_path / "cache")
    assert [shards.source(n) for n in range(len(shards))] == [entry.source for entry in entries]
    assert "damaged here" in str(list(reasons(shards).values())[-1])


def test_damage_inside_compressed_data(tmp_path):
    members = [(f"{n}.png", encoded("red")) for n in range(3000)]
    path = write_tar(tmp_path / "s.tgz", members, "w:gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    path.write_bytes(data)
    entries = list(read_entries(path))
    assert 0 < len(entries) < 3000 and entries[0].load().image.size == (4, 3)
    with pytest.raises(BrokenSampleError, match="truncated or damaged here"):
        entries[-1].load()


def test_files_that_are_no_archives(tmp_path):
    for name, data in (("text", b"hello " * 200), ("empty", b""), ("gz", gzip.compress(b"hello"))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"^paths: expected tar archives, got .*{name} \("):
            list(read_entries(tmp_path / name))
    (tmp_path / "cut").write_bytes(gzip.compress(b"hello" * 99)[:12])
    with pytest.raises(ValueError, match=r"^paths: expected tar archives, got .*cut \("):
        list(read_entries(tmp_path / "cut"))
    with pytest.raises(FileNotFoundError, match="none"):
        list(read_entries(tmp_path / "none"))


def test_archives_behind_urls(tmp_path):
    path = write_tar(tmp_path / "s.tar", MEMBERS)
    expected = [str(text).replace(str(path), "URL") for text in streamed(path).values()]
    fsspec.filesystem("memory").pipe("/entries/s.tar", path.read_bytes())
    with served(tmp_path) as (url, server):
        for name in (f"{url}/s.tar", "memory://entries/s.tar"):
            found = streamed(name)
            assert [str(text).replace(name, "URL") for text in found.values()] == expected
        with pytest.raises(FileNotFoundError, match=f"{url}/none.tar"):
            list(read_entries(f"{url}/none.tar"))
        # A lost connection is no damage of the archive: another attempt may succeed.
        big = [(f"{n}.txt", b"x" * 500_000) for n in range(8)]
        write_tar(tmp_path / "big.tar", big)
        server.cuts["big.tar"] = 2_100_000
        entries = read_entries(f"{url}/big.tar")
        with pytest.raises(SourceError, match=f"^cannot read {url}/big.tar: ClientPayloadError"):
            list(entries)
