"""`setok cluster` with files of any name and kind, and with interrupted runs."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image

from helpers.cluster_files import GRID, listing, read, two_halves
from setok_cli.main import main
from setokim.cli import cluster_results
from setokim.utils.file_names import printable_name
from setokim.utils.folder_lock import locked
from setokim.visualization.cluster_record import _laid_out


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "halves.png"
    two_halves().save(path)
    return path


ODD_NAMES = [
    b"bad\xff.png",
    "größe.png".encode(),
    b"[draft] a.png",
    b"x[ 12 ].png",
    b"two\nlines.png",
    b":smile:.png",
    b"s" * 247 + b".png",
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_files_of_any_name(picture, tmp_path, capsys, name):
    file = tmp_path / "in" / os.fsdecode(name)
    file.parent.mkdir()
    file.write_bytes(picture.read_bytes())
    out = tmp_path / "out"
    for _ in range(2):
        assert main(["cluster", str(file), "--out", str(out), *GRID]) == 0
    record, drawn = (out / name for name in listing(out))
    assert drawn.suffix == ".png" and Image.open(drawn).width > 1280
    # Unchanged, in a UTF-8 file.
    assert os.fsencode(read(record)["image"]) == os.fsencode(file)
    shown = printable_name(record.name.removesuffix(".clusters.json"))
    folded = "".join(line[2:].split(" │ ")[0] for line in capsys.readouterr().out.splitlines())
    assert shown in folded.replace(" ", "") or shown in folded


@pytest.mark.slow
def test_files_of_any_name_in_the_c_locale(picture, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ODD_NAMES:
        (tmp_path / "in" / os.fsdecode(name)).write_bytes(picture.read_bytes())
    code = "from setok_cli.main import main; import sys; sys.exit(main())"
    command = [sys.executable, "-c", code, "cluster", "in", "--out", "out", *GRID]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run(
        command, cwd=tmp_path, env=os.environ | ascii_only, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr
    records = [path for path in (tmp_path / "out").iterdir() if path.suffix == ".json"]
    # A UTF-8 name is text, although the locale lacks its characters.
    assert {read(path)["image"] for path in records} == {
        f"in/{name.decode('utf-8', 'surrogateescape')}" for name in ODD_NAMES
    }


def test_the_json_is_laid_out_by_structure():
    value = {"a": "x[ 1,  2 ]", "b": [[1, 2], [3, 4]], "c": {}, "d": [], "e": [{"f": [5, 6]}]}
    text = _laid_out(value)
    assert json.loads(text) == value
    assert text.splitlines() == [
        "{",
        '  "a": "x[ 1,  2 ]",',
        '  "b": [',
        "    [1, 2],",
        "    [3, 4]",
        "  ],",
        '  "c": {},',
        '  "d": [],',
        '  "e": [',
        "    {",
        '      "f": [5, 6]',
        "    }",
        "  ]",
        "}",
    ]


def test_a_second_run_keeps_the_results_of_another_image(tmp_path):
    out = tmp_path / "out"
    for i, folder in enumerate("aba"):
        file = tmp_path / folder / "cat.png"
        file.parent.mkdir(exist_ok=True)
        two_halves(10 + i, 10).save(file)
        assert main(["cluster", str(file), "--out", str(out), *GRID]) == 0
    # The last image was the first one, changed.
    assert [read(out / f"{n}.clusters.json")["width"] for n in ("cat", "cat-2")] == [12, 11]
    assert len(listing(out)) == 4


def test_results_replace_links_and_do_not_follow_them(picture, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other.png"
    command = ["cluster", str(picture), "--out", str(out), *GRID]
    assert main(command) == 0
    other.write_text("precious")
    (out / "halves.clusters.png").unlink()
    (out / "halves.clusters.png").symlink_to(other)
    assert main(command) == 0
    assert other.read_text() == "precious"
    assert not (out / "halves.clusters.png").is_symlink()


def test_unreadable_entries_of_a_folder_are_named(picture, tmp_path, capsys, monkeypatch):
    source = tmp_path / "in"
    source.mkdir()
    (source / "good.png").write_bytes(picture.read_bytes())
    (source / "lost.png").symlink_to("nowhere.png")
    (source / "round.png").symlink_to("round.png")
    (source / "phone.HEIC").touch()
    (source / "notes.txt").touch()
    (source / "folder.png").mkdir()
    os.mkfifo(source / "pipe.png")
    (source / ".unfinished-0123.png").touch()
    out = tmp_path / "out"
    assert main(["cluster", str(source), "--out", str(out), *GRID]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("setok")]
    assert said == [
        f"setok cluster: cannot read {source}/lost.png: No such file or directory",
        f"setok cluster: cannot read {source}/phone.HEIC: the Pillow installed here does not "
        "read .heic files",
        f"setok cluster: cannot read {source}/pipe.png: expected a regular file, got a FIFO",
        f"setok cluster: cannot read {source}/round.png: Too many levels of symbolic links",
    ]
    assert listing(out) == ["good.clusters.json", "good.clusters.png"]


@pytest.mark.parametrize("name", ["pipe.png", "link.png", "/dev/zero", "nul\0.png"])
def test_paths_that_are_not_files(tmp_path, capsys, name):
    path = tmp_path / name
    if name == "pipe.png":
        os.mkfifo(path)
    if name == "link.png":
        path.symlink_to("nothing")
    assert main(["cluster", str(path), "--out", str(tmp_path / "out"), *GRID]) == 1
    [line] = [one for one in capsys.readouterr().err.splitlines() if one.startswith("setok")]
    assert line.startswith(f"setok cluster: cannot read {printable_name(path)}: ")


def test_a_signal_keeps_finished_results(tmp_path, capsys, monkeypatch):
    for name in "abc":
        two_halves().save(tmp_path / f"{name}.png")
    before = cluster_results.draw_figure

    def stop_at_b(picture, encoder):
        if picture.name == "b":
            os.kill(os.getpid(), signal.SIGTERM)
        return before(picture, encoder)

    monkeypatch.setattr(cluster_results, "draw_figure", stop_at_b)
    out = tmp_path / "out"
    assert main(["cluster", str(tmp_path), "--out", str(out), *GRID]) == 128 + signal.SIGTERM
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == "setok cluster: stopped by SIGTERM"
    assert f"Results are in {out}" in printed.out
    # The JSON of b came first; no unfinished file is left.
    names = ["a.clusters.json", "a.clusters.png", "b.clusters.json"]
    assert listing(out) == names
    monkeypatch.undo()
    assert main(["cluster", str(tmp_path), "--out", str(out), *GRID]) == 0
    assert listing(out) == sorted(f"{n}.clusters.{e}" for n in "abc" for e in ("json", "png"))


def test_a_full_disk(picture, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("setokim.utils.files.os.fsync", full)
    out = tmp_path / "out"
    out.mkdir()
    assert main(["cluster", str(picture), "--out", str(out), *GRID]) == 2
    assert "[Errno 28] No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert listing(out) == []


def test_a_folder_in_use_by_another_process(picture, tmp_path, capsys):
    out = tmp_path / "out"
    with locked(out):
        assert main(["cluster", str(picture), "--out", str(out), *GRID]) == 2
    said = capsys.readouterr().err
    assert f"--out: expected a folder that no process writes into, got {out}, held by" in said
    assert f"process {os.getpid()}" in said and listing(out) == []


def test_a_grid_that_does_not_fit_into_memory(picture, tmp_path, capsys, monkeypatch):
    """3 · (2000 · 14)² values of one image, each 4 bytes, and 17 more while it is scaled."""
    monkeypatch.setattr("setokim.utils.host_memory.free_memory", lambda: 40 * 2**30)
    command = ["cluster", str(picture), "--out", str(tmp_path / "out"), "--grid", "2000x2000"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "--grid 2000x2000: expected a size within 40.0 GiB of free memory" in said
    assert "at least 46.0 GiB; --batch-size is 1" in said
    assert not (tmp_path / "out").exists()
