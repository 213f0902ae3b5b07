import bz2
import gzip
import lzma
import sys
import tracemalloc

import fsspec
import pytest

from helpers.file_server import served
from setok_kernels.extras import MissingExtraError
from setokim.data.archives import SourceError, open_stream

DATA = bytes(range(256)) * 5000 + b"the end"


def packed(kind, data=DATA):
    if kind == "zstd":
        return pytest.importorskip("zstandard").compress(data)
    return {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "plain": bytes}[
        kind
    ](data)


KINDS = ["plain", "gzip", "bzip2", "xz", "zstd"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_bytes_decide_on_the_compression(tmp_path, kind):
    path = tmp_path / "a.tar"
    path.write_bytes(packed(kind))
    with open_stream(path) as stream:
        assert stream.read1(10) == DATA[:10] and stream.read() == DATA[10:]
    fsspec.filesystem("memory").pipe("/streams/a", packed(kind))
    with open_stream("memory://streams/a") as stream:
        assert stream.read() == DATA
    with open_stream(f"file://{path}") as stream:
        assert stream.read() == DATA


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_file_written_one_after_the_other(tmp_path, kind):
    path = tmp_path / "a"
    path.write_bytes(packed(kind, b"one") + packed(kind, b"two"))
    with open_stream(path) as stream:
        assert stream.read() == b"onetwo"


@pytest.mark.parametrize("data", [b"", b"\x1f", b"ab"])
def test_short_files(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    with open_stream(tmp_path / "a") as stream:
        assert stream.read() == data


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zstd"])
def test_all_bytes_before_a_truncation_are_read(tmp_path, kind):
    blocks = [bytes([n]) * 100_000 for n in range(3)]
    (tmp_path / "a").write_bytes(packed(kind, blocks[0]) + packed(kind, blocks[1])[:-9])
    found = b""
    with open_stream(tmp_path / "a") as stream:
        try:
            while data := stream.read1(2**16):
                found += data
        except EOFError:
            pass
        else:
            assert kind == "zstd"  # whose reader ends silently
    assert blocks[0] == found[:100_000] and (blocks[0] + blocks[1]).startswith(found)


def test_reading_a_large_file_takes_little_memory(tmp_path):
    (tmp_path / "a").write_bytes(gzip.compress(bytes(2**26), 1))
    tracemalloc.start()
    try:
        with open_stream(tmp_path / "a") as stream:
            length = 0
            while data := stream.read1(2**20):
                length += len(data)
        assert length == 2**26 and tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_a_web_server_is_asked_once_for_the_bytes(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(packed("gzip"))
    with served(tmp_path) as (url, server), open_stream(f"{url}/a.tar.gz") as stream:
        assert stream.read() == DATA
        assert server.requests.count(("GET", "/a.tar.gz")) == 1


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"), open_stream(tmp_path / "none"):
        pass
    with pytest.raises(IsADirectoryError), open_stream(tmp_path):
        pass
    message = r"^cannot read memory://streams/none: no such file$"
    with pytest.raises(FileNotFoundError, match=message), open_stream("memory://streams/none"):
        pass
    with served(tmp_path) as (url, server):
        message = rf"^cannot read {url}/none: no such file$"
        with pytest.raises(FileNotFoundError, match=message), open_stream(f"{url}/none"):
            pass
        for status in (403, 500):
            server.statuses["a"] = status
            with pytest.raises(OSError, match=rf"^cannot read {url}/a: .*{status}") as caught:
                open_stream(f"{url}/a").__enter__()
            assert not isinstance(caught.value, FileNotFoundError)
    message = rf"^cannot read {url}/a: ClientConnector"
    with pytest.raises(OSError, match=message), open_stream(f"{url}/a"):
        pass
    with pytest.raises(ValueError, match=r"^paths: expected a URL for fsspec"):
        open_stream("nosuch://a").__enter__()


def test_a_connection_that_is_lost_is_no_end_of_the_file(tmp_path):
    (tmp_path / "a").write_bytes(DATA * 2)
    with served(tmp_path) as (url, server):
        server.cuts["a"] = 1_200_000
        message = rf"^cannot read {url}/a: ClientPayloadError"
        # The end of the connection may be known before the first bytes are read.
        with pytest.raises(SourceError, match=message), open_stream(f"{url}/a") as stream:
            stream.read()
        server.cuts["a"] = 100
        with pytest.raises(SourceError, match=message):
            open_stream(f"{url}/a").__enter__()


def test_a_file_shorter_than_its_server_said(monkeypatch):
    files = fsspec.filesystem("memory")
    files.pipe("/streams/short", DATA)
    monkeypatch.setattr(type(files.store["/streams/short"]), "size", len(DATA) + 1)
    found = f"expected {len(DATA) + 1} bytes, got {len(DATA)}"
    message = rf"^cannot read memory://streams/short: {found}$"
    name = "memory://streams/short"
    with open_stream(name) as stream, pytest.raises(SourceError, match=message):
        stream.read()


def test_zstd_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"zstandard: pip install .*\[tokenize\]"):
        open_stream(tmp_path / "a").__enter__()
