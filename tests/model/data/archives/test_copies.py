import gzip
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from helpers.file_server import served
from setokim.data.archives import SourceError, local_copy

DATA = np.random.default_rng(0).bytes(3_000_000)


def files_of(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_plain_local_files_are_used_in_place(tmp_path):
    (tmp_path / "a.tar").write_bytes(DATA)
    for name in (tmp_path / "a.tar", str(tmp_path / "a.tar"), f"file://{tmp_path}/a.tar"):
        assert local_copy(name, tmp_path / "cache") == tmp_path / "a.tar"
    assert not (tmp_path / "cache").exists()
    with pytest.raises(FileNotFoundError, match="none"):
        local_copy(tmp_path / "none", tmp_path / "cache")


def test_compressed_files_are_unpacked_once(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(DATA))
    copy = local_copy(tmp_path / "a.tar.gz", tmp_path / "cache")
    assert copy.read_bytes() == DATA and files_of(tmp_path / "cache") == [".lock", "a.tar"]
    changed = copy.stat().st_mtime_ns
    assert local_copy(tmp_path / "a.tar.gz", tmp_path / "cache") == copy
    assert copy.stat().st_mtime_ns == changed
    # Another file of the same name is another copy.
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(DATA[1:]))
    assert local_copy(tmp_path / "a.tar.gz", tmp_path / "cache").read_bytes() == DATA[1:]
    assert copy.read_bytes() == DATA


def test_remote_files_are_fetched_once_until_they_change(tmp_path):
    (tmp_path / "web").mkdir()
    path = tmp_path / "web" / "a.tar"
    path.write_bytes(DATA)
    with served(path.parent) as (url, server):
        for _ in range(2):
            copy = local_copy(f"{url}/a.tar?key=1/2", tmp_path / "cache")
            assert copy.read_bytes() == DATA and copy.name == "a.tar"
        assert server.requests.count(("GET", "/a.tar?key=1/2")) == 1
        os.utime(path, (1, 1))
        assert local_copy(f"{url}/a.tar?key=1/2", tmp_path / "cache") != copy
    files = fsspec.filesystem("memory")
    for data in (b"one", b"two"):
        files.pipe("/copies/a.tar", data)
        assert local_copy("memory://copies/a.tar", tmp_path / "cache").read_bytes() == data


def test_the_folder_of_the_copies(tmp_path, monkeypatch):
    (tmp_path / "a.tgz").write_bytes(gzip.compress(b"x"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("SETOK_CACHE", raising=False)
    found = [local_copy(tmp_path / "a.tgz")]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    found.append(local_copy(tmp_path / "a.tgz"))
    monkeypatch.setenv("SETOK_CACHE", str(tmp_path / "own"))
    found.append(local_copy(tmp_path / "a.tgz"))
    found.append(local_copy(tmp_path / "a.tgz", tmp_path / "given"))
    expected = ["home/.cache/setok/shards", "xdg/setok/shards", "own", "given"]
    assert [copy.parents[1] for copy in found] == [tmp_path / name for name in expected]


def test_failed_fetches_leave_nothing(tmp_path):
    (tmp_path / "a.tar").write_bytes(DATA)
    cache = tmp_path / "cache"
    with served(tmp_path) as (url, server):
        server.cuts["a.tar"] = 2_000_000
        with pytest.raises(SourceError, match=f"^cannot read {url}/a.tar: ClientPayloadError"):
            local_copy(f"{url}/a.tar", cache)
        assert files_of(cache) == [".lock"]
        server.cuts.clear()
        assert local_copy(f"{url}/a.tar", cache).read_bytes() == DATA
        with pytest.raises(FileNotFoundError, match=rf"^cannot read {url}/none: no such file$"):
            local_copy(f"{url}/none", cache)
        server.statuses["b.tar"] = 403
        with pytest.raises(OSError, match=rf"^cannot read {url}/b.tar: .*403"):
            local_copy(f"{url}/b.tar", cache)
    fsspec.filesystem("memory").pipe("/copies/b.tar", DATA)
    # A folder that cannot be written; tests may run as root, who may write everywhere.
    with pytest.raises(OSError, match=r"a\.tar"):
        local_copy("memory://copies/b.tar", tmp_path / "a.tar")


def test_damaged_data(tmp_path):
    whole = gzip.compress(DATA, 1)
    for name, data in (("start", whole[:12]), ("middle", whole[: len(whole) // 2])):
        (tmp_path / f"{name}.gz").write_bytes(data)
    with pytest.raises(ValueError, match=r"^paths: expected tar archives, got .*start\.gz \(Comp"):
        local_copy(tmp_path / "start.gz", tmp_path / "cache")
    assert files_of(tmp_path / "cache") == [".lock"]
    found = local_copy(tmp_path / "middle.gz", tmp_path / "cache").read_bytes()
    assert 1_000_000 < len(found) < len(DATA) and DATA.startswith(found)


def test_a_full_disk(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(DATA, 1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"\[Errno 27\].*a\.tar'"):
            local_copy(tmp_path / "a.gz", tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert files_of(tmp_path / "cache") == [".lock"]
    assert local_copy(tmp_path / "a.gz", tmp_path / "cache").read_bytes() == DATA


def fetch(url, cache, done):
    done.put(local_copy(url, cache).read_bytes() == DATA)


@pytest.fixture
def forked():
    """Start processes that fetch a copy; none outlives the test."""
    context = multiprocessing.get_context("fork")
    done, started = context.Queue(), []

    def start(url, cache):
        started.append(context.Process(target=fetch, args=(url, cache, done), daemon=True))
        started[-1].start()
        return started[-1]

    yield start, done
    for process in started:
        process.kill()
        process.join()


def test_a_killed_process_leaves_no_half_copy_and_one_of_two_fetches(tmp_path, forked):
    start, done = forked
    cache, web = tmp_path / "cache", tmp_path / "web"
    web.mkdir()
    (web / "a.tar").write_bytes(DATA)
    with served(web) as (url, server):
        server.cuts["a.tar"] = 2_000_000
        server.stall.clear()
        killed = start(f"{url}/a.tar", cache)
        assert server.reached.wait(60)
        while not any(path.stat().st_size for path in cache.rglob(".unfinished-*")):
            assert killed.is_alive()
            time.sleep(0.01)
        os.kill(killed.pid, signal.SIGKILL)
        killed.join()
        assert not list(cache.rglob("a.tar"))
        server.stall.set()
        server.cuts.clear()
        server.requests.clear()
        for _ in range(2):
            start(f"{url}/a.tar", cache)
        assert [done.get(timeout=60) for _ in range(2)] == [True, True]
        assert server.requests.count(("GET", "/a.tar")) == 1
    assert files_of(cache) == [".lock", "a.tar"]
