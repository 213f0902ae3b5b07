import sys

import fsspec
import pytest
from fsspec.registry import known_implementations

from helpers.file_server import served
from setokim.data.archives import expand


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s3://b/x-{8..11}.tar", [f"s3://b/x-{n}.tar" for n in (8, 9, 10, 11)]),
        ("s3://b/x-{008..011}.tar", [f"s3://b/x-{n:03d}.tar" for n in (8, 9, 10, 11)]),
        ("s3://b/{0..10}.tar", [f"s3://b/{n}.tar" for n in range(11)]),
        ("s3://b/{2..0}.tar", ["s3://b/2.tar", "s3://b/1.tar", "s3://b/0.tar"]),
        ("s3://b/{3..3}.tar", ["s3://b/3.tar"]),
        (
            "hf://{a,bc,}/{0..1}.tar",
            [f"hf://{k}/{n}.tar" for k in ("a", "bc", "") for n in range(2)],
        ),
        ("https://h/x.tar?sign=a[b]?*", ["https://h/x.tar?sign=a[b]?*"]),
        ("http://[::1]:80/x.tar", ["http://[::1]:80/x.tar"]),
    ],
)
def test_urls_are_expanded_but_not_looked_up(name, expected):
    assert expand(name) == expected


def test_local_names(tmp_path):
    touch(tmp_path, "a-00.tar", "a-01.tar", "b-00.tar", "c/a-02.tar")
    names = [str(tmp_path / name) for name in ("a-00.tar", "a-01.tar", "b-00.tar")]
    assert expand(f"{tmp_path}/{{a-00,b-00}}.tar") == [names[0], names[2]]
    assert expand(f"{tmp_path}/{{b,a}}-*.tar") == [names[2], *names[:2]]
    assert expand(f"{tmp_path}/**/a-*.tar") == [*names[:2], str(tmp_path / "c/a-02.tar")]
    assert expand([tmp_path / "b-00.tar", names[0]]) == [names[2], names[0]]
    assert expand(f"file://{tmp_path}/a-{{00..01}}.tar") == names[:2]
    assert expand(iter([names[0]])) == names[:1] and expand([]) == []


def test_a_file_of_exactly_the_name_comes_first(tmp_path):
    touch(tmp_path, "x[1].tar", "x1.tar", "{a,b}.tar", "a.tar", "b.tar", "y-0[1].tar", "{c.tar")
    for name in ("x[1].tar", "{a,b}.tar", "{c.tar"):
        assert expand(f"{tmp_path}/{name}") == [str(tmp_path / name)]
    assert expand(f"{tmp_path}/y-{{0..0}}[1].tar") == [str(tmp_path / "y-0[1].tar")]


@pytest.mark.parametrize("name", ["none.tar", "none-*.tar", "folder", "fold*", "{a,none}.tar"])
def test_names_that_match_no_file(tmp_path, name):
    touch(tmp_path, "a.tar", "folder/b.tar")
    missing = name.replace("{a,none}", "none").replace("*", r"\*")
    with pytest.raises(ValueError, match=rf"^paths: expected files, got '.*/{missing}'$"):
        expand(f"{tmp_path}/{name}")


def test_a_path_is_no_pattern(tmp_path):
    touch(tmp_path, "a.tar")
    with pytest.raises(ValueError, match=r"^paths: expected files, got '.*/\*\.tar'$"):
        expand(tmp_path / "*.tar")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a-{000..127.tar", "closed braces without inner ones"),
        ("a-000..127}.tar", "closed braces without inner ones"),
        ("a-{b,{c,d}}.tar", "closed braces without inner ones"),
        ("a-{b}.tar", r"\{FIRST..LAST\} of numbers or \{ONE,OTHER\}, got \{b\} in 'a-\{b\}.tar'"),
        ("a-{}.tar", r"got \{\} in"),
        ("a-{a..c}.tar", r"got \{a\.\.c\} in"),
        ("a-{0..8..2}.tar", r"got \{0\.\.8\.\.2\} in"),
        ("a-{0..3,7}.tar", r"got \{0\.\.3,7\} in"),
        ("a-{-1..1}.tar", r"got \{-1\.\.1\} in"),
        ("a-{0..10000000}.tar", "at most 10000000 names"),
        ("a-{0..9999999999999}.tar", "at most 10000000 names"),
        ("a-{0..9999}-{0..9999}.tar", "at most 10000000 names"),
        (f"a-{{0..{'9' * 5000}}}.tar", r"FIRST..LAST"),
    ],
)
def test_braces_that_are_no_list(name, message):
    with pytest.raises(ValueError, match=f"^paths: expected .*{message}"):
        expand(name)


def test_globs_of_urls():
    files = fsspec.filesystem("memory")
    for name in ("/names/b.tar", "/names/a.tar", "/names/c.txt", "/names/x/d.tar"):
        files.pipe(name, b"")
    assert expand("memory://names/*.tar") == ["memory:///names/a.tar", "memory:///names/b.tar"]
    assert expand("memory://names/{b,a}*.tar") == [
        "memory:///names/b.tar",
        "memory:///names/a.tar",
    ]
    for name in ("memory://names/*.gz", "memory://names/*x"):
        with pytest.raises(ValueError, match=r"^paths: expected files, got 'memory://names/\*"):
            expand(name)


def test_globs_on_a_web_server(tmp_path):
    touch(tmp_path, "b.tar", "a.tar", "c.txt")
    with served(tmp_path) as (url, _):
        assert expand(f"{url}/*.tar") == [f"{url}/a.tar", f"{url}/b.tar"]
    with pytest.raises(OSError, match=r"^cannot read http://127.*\*\.tar: Client.*Error: "):
        expand(f"{url}/*.tar")


def test_protocols_without_a_package(monkeypatch):
    with pytest.raises(ValueError, match=r"^paths: expected a URL for fsspec, got 'nosuch://a\*'"):
        expand("nosuch://a*")
    missing = {"class": "no_such_package.FS", "err": "Install no-such-package to access it"}
    monkeypatch.setitem(known_implementations, "gone", missing)
    message = r"^paths: expected an installed package for gone://, got .*Install no-such-package"
    with pytest.raises(ValueError, match=message):
        expand("gone://bucket/*.tar")
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    message = r"^paths: expected an installed package for https://, got 'https://h/\*' \(.*aiohttp"
    with pytest.raises(ValueError, match=message):
        expand("https://h/*")
