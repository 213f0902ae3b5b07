"""Names of results."""

import json
import os
from pathlib import Path

import pytest

from setokim.cli import names
from setokim.cli.names import result_names
from setokim.utils.file_names import true_path


def earlier(out, name, image, endings=(".json", ".png")):
    """A result that lies in the folder."""
    for ending in endings:
        (out / f"{name}.clusters{ending}").write_text(json.dumps({"source": true_path(image)}))


def test_a_result_of_the_same_image_is_replaced_and_of_another_kept(tmp_path):
    a, b, c = (tmp_path / folder / "x.png" for folder in "abc")
    earlier(tmp_path, "x", a)
    assert result_names([a], tmp_path) == ["x"]
    assert result_names([b], tmp_path) == ["x-2"]
    earlier(tmp_path, "x-2", b)
    assert result_names([b], tmp_path) == ["x-2"]
    assert result_names([c, b, a], tmp_path) == ["x-3", "x-2", "x"]
    assert result_names([b, c, a]) == ["x", "x-2", "x-3"], "nothing lies there"


def test_the_same_name_given_from_another_folder_is_another_image(tmp_path, monkeypatch):
    for folder in "ab":
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    earlier(tmp_path, "x", tmp_path / "a" / "x.png")
    x = Path("x.png")
    assert result_names([x], tmp_path) == ["x"]
    monkeypatch.chdir(tmp_path / "b")
    assert result_names([x], tmp_path) == ["x-2"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"source": 3}', "[" * 100_000, None])
def test_results_without_the_name_of_their_image_are_kept(tmp_path, text):
    record = tmp_path / "X.clusters.json"
    if text is None:
        os.mkfifo(record)
    else:
        record.write_text(text)
    assert result_names([tmp_path / "x.png"], tmp_path) == ["x-2"]


def test_a_png_alone_is_kept(tmp_path):
    earlier(tmp_path, "x", tmp_path / "x.png", [".png"])
    assert result_names([tmp_path / "x.png"], tmp_path) == ["x-2"]


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_an_animation_belongs_to_the_image_of_its_record(tmp_path, ending):
    a, b = (tmp_path / folder / "x.png" for folder in "ab")
    earlier(tmp_path, "x", a, [".json", ending])
    assert result_names([a], tmp_path) == ["x"]
    assert result_names([b], tmp_path) == ["x-2"]
    (tmp_path / "x.clusters.json").unlink()
    assert result_names([a], tmp_path) == ["x-2"], "no record says whose it is"


def test_equal_names_in_another_spelling_count_as_equal(tmp_path):
    composed, apart = "\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}"
    files = [tmp_path / "a" / f"{composed}.png", tmp_path / "b" / f"{apart}.png"]
    assert result_names(files) == [composed, f"{apart}-2"]


def test_long_names_are_cut_and_stay_apart(tmp_path):
    long = "s" * 247
    files = [tmp_path / n for n in (f"{long}.png", f"{long}t.png", f"{'é' * 123}.png", "s.png")]
    files += [tmp_path / "b" / f"{long}.png"]
    found = result_names(files, tmp_path)
    assert len(set(found)) == 5 and found[3] == "s"
    for name in found:
        file = tmp_path / f"{name}.clusters.json"
        file.touch()  # as long as it may be, and no longer
    cut = [name for name in found if name != "s"]
    assert all(239 <= len(os.fsencode(name)) <= 241 and "~" in name for name in cut)
    assert found[4].startswith("s" * 200) and found[4].endswith("-2")
    assert result_names(files[:1], tmp_path / "nowhere")[0] == found[0], "the same every time"


def test_many_files_of_one_stem_take_linear_work(tmp_path, monkeypatch):
    files = [tmp_path / str(i) / "x.png" for i in range(2000)]
    tried = []
    before = names._fitted
    monkeypatch.setattr(names, "_fitted", lambda *a: tried.append(a) or before(*a))
    found = result_names(files)
    assert found == ["x"] + [f"x-{i}" for i in range(2, 2001)]
    assert len(tried) == 2000
    for file, name in zip(files[:100], found, strict=False):
        earlier(tmp_path, name, file, [".json"])
    tried.clear()
    assert result_names(files[99::-1], tmp_path) == found[99::-1]
    assert len(tried) == 100
