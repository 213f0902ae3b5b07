"""Files that are written whole."""

import os

import pytest

from setokim.files import UNFINISHED, replacing, write_file


def test_a_text_and_bytes_are_written_and_nothing_is_left_beside(tmp_path):
    write_file(tmp_path / "a.txt", "ä\n")
    write_file(tmp_path / "b", b"\0\xff")
    assert (tmp_path / "a.txt").read_bytes() == "ä\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\0\xff"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b"]


def test_an_error_in_between_leaves_the_old_file(tmp_path):
    write_file(tmp_path / "a", "old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a") as beside:
        beside.write_text("new")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_is_replaced_and_what_it_points_at_stays(tmp_path):
    (tmp_path / "secret").write_text("kept")
    (tmp_path / "a").symlink_to("secret")
    write_file(tmp_path / "a", "new")
    assert (tmp_path / "secret").read_text() == "kept"
    assert not (tmp_path / "a").is_symlink()


def test_the_longest_name_a_file_system_takes(tmp_path):
    name = "n" * 251 + ".png"
    with replacing(tmp_path / name) as beside:
        assert beside.name.startswith(UNFINISHED) and beside.suffix == ".png"
    assert os.listdir(tmp_path) == [name]


def test_the_mode_is_that_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_file(tmp_path / "a", "")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_file_is_on_the_disk_before_its_name_and_the_name_after(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(os.readlink(f"/proc/self/fd/{fd}")))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), replace(*a)))
    write_file(tmp_path / "a", "x")
    assert UNFINISHED in calls[0]
    assert calls[1:] == ["replace", str(tmp_path)]
