"""Files that are written whole."""

import os

import pytest
from safetensors import SafetensorError

from setokim.utils.files import (
    UNFINISHED,
    filling,
    naming,
    replacing,
    replacing_folder,
    write_file,
)


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


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
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


def test_a_full_disk_is_named_with_the_file_that_it_was_for(tmp_path):
    full = pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / 'a'}'$")
    with full, replacing(tmp_path / "a"), open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == []


def test_errors_with_a_name_or_without_a_number_stay_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError, match="'other'"), naming(tmp_path):
        raise FileNotFoundError(2, "No such file", "other")
    with pytest.raises(OSError, match=r"^just words$"), naming(tmp_path):
        raise OSError("just words")
    with pytest.raises(OSError, match=rf"^{tmp_path}: no room$"), naming(tmp_path):
        raise SafetensorError("no room")


class TestFilling:
    def test_files_are_replaced_and_others_stay(self, tmp_path):
        folder = tmp_path / "out"
        (folder / "deep").mkdir(parents=True)
        for name in ("a", "b", "deep/c"):
            (folder / name).write_text("old")
        with filling(folder) as beside:
            (beside / "deep").mkdir()
            for name in ("a", "deep/c", "deep/d"):
                (beside / name).write_text("new")
            assert (folder / "a").read_text() == "old"
        found = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("?")}
        assert found == {"a": "new", "b": "old", "deep/c": "new", "deep/d": "new"}
        assert os.listdir(tmp_path) == ["out"]

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_an_error_in_between_changes_nothing(self, tmp_path, error):
        with pytest.raises(error), filling(tmp_path / "out") as beside:
            (beside / "a").write_text("new")
            raise error
        assert os.listdir(tmp_path) == []

    def test_a_link_is_replaced_and_its_target_stays(self, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "secret").write_text("kept")
        (tmp_path / "out" / "a").symlink_to(tmp_path / "secret")
        with filling(tmp_path / "out") as beside:
            (beside / "a").write_text("new")
        assert (tmp_path / "secret").read_text() == "kept"
        assert not (tmp_path / "out" / "a").is_symlink()

    def test_files_are_on_the_disk_before_their_names_and_the_names_after(
        self, tmp_path, monkeypatch
    ):
        calls = []
        monkeypatch.setattr(
            os, "fsync", lambda fd: calls.append(os.readlink(f"/proc/self/fd/{fd}"))
        )
        replace = os.replace
        monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), replace(*a)))
        with filling(tmp_path / "out") as beside:
            (beside / "a").touch()
        assert calls[0].endswith("/a") and UNFINISHED in calls[0]
        assert calls[1:] == ["replace", str(tmp_path / "out"), str(tmp_path)]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "out" / "model"
    for name in ("a", "b"):
        with replacing_folder(folder) as beside:
            assert list(beside.iterdir()) == []
            (beside / name).write_text(name)
            (beside / "deep").mkdir()
        assert sorted(os.listdir(folder)) == [name, "deep"]
        assert os.listdir(folder.parent) == ["model"]


def test_a_folder_stays_whatever_stops_its_writer(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    # What a killed writer leaves.
    (tmp_path / f"{UNFINISHED}new-model").mkdir()
    (tmp_path / f"{UNFINISHED}new-model" / "half").write_text("")
    with replacing_folder(folder) as beside:
        (beside / "a").write_text("old")
    assert os.listdir(folder) == ["a"]
    with pytest.raises(KeyboardInterrupt), replacing_folder(folder) as beside:
        (beside / "a").write_text("new")
        raise KeyboardInterrupt
    rename = type(folder).rename

    def fails(self, target):
        if self.name.startswith(f"{UNFINISHED}new"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(type(folder), "rename", fails)
    with pytest.raises(OSError, match="Input/output error"), replacing_folder(folder) as beside:
        (beside / "a").write_text("new")
    assert (folder / "a").read_text() == "old" and os.listdir(tmp_path) == ["model"]
