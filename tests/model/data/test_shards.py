import numpy as np
import pytest

from helpers.file_server import served
from helpers.tars import encoded, reasons, write_tar
from setokim.data import Shards, build_dataset


def test_shards_from_everywhere(tmp_path, monkeypatch):
    for n in range(2):
        members = [(f"{n}-{k}.png", encoded((n, k, 0))) for k in range(3)]
        write_tar(tmp_path / f"s-{n:03d}.tar", members)
        write_tar(tmp_path / f"s-{n:03d}.tar.gz", members, "w:gz")
    keys = [f"{n}-{k}" for n in range(2) for k in range(3)]
    monkeypatch.setenv("SETOK_CACHE", str(tmp_path / "cache"))
    with served(tmp_path) as (url, _):
        for name in (f"{tmp_path}/s-{{000..001}}.tar", f"{url}/s-{{000..001}}.tar.gz"):
            found = reasons(build_dataset("shards", path=name))
            assert list(found.values()) == [""] * 6
            first, last = name.replace("{000..001}", "000"), name.replace("{000..001}", "001")
            assert list(found) == [f"{(first, last)[int(k[0])]}: {k}" for k in keys]
    copies = sorted(path.name for path in (tmp_path / "cache").rglob("*.tar"))
    assert copies == ["s-000.tar", "s-001.tar"]
    own = build_dataset("shards", path=f"{tmp_path}/s-000.tar.gz", cache=str(tmp_path / "own"))
    assert np.asarray(own[2].image)[0, 0].tolist() == [0, 2, 0]
    assert list((tmp_path / "own").rglob("*.tar"))
    with pytest.raises(OSError, match=r"^cannot read http://.*s-000\.tar\.gz: "):
        Shards(f"{url}/s-000.tar.gz")
