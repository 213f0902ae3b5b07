"""`setok cluster --animate`: an animation beside the PNG and the JSON."""

import errno
import os
import signal

import pytest
from PIL import Image

from helpers.cluster_files import GRID, listing, read, two_halves
from setok_cli.main import main
from setokim.cli import cluster, cluster_results
from setokim.visualization import animation


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "in" / "halves.png"
    path.parent.mkdir()
    two_halves().save(path)
    return path


def names(*endings, stem="halves"):
    return sorted(f"{stem}.clusters.{ending}" for ending in endings)


def test_the_formats_are_those_of_the_animations():
    assert cluster.ANIMATIONS == animation.FORMATS


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_beside_the_others(picture, tmp_path, kind):
    out = tmp_path / "out"
    assert main(["cluster", str(picture), "--out", str(out), *GRID, "--animate", kind]) == 0
    assert listing(out) == names("json", "png", kind)
    record = read(out / "halves.clusters.json")
    with Image.open(out / f"halves.clusters.{kind}") as drawn:
        assert drawn.format == kind.upper()
        assert drawn.n_frames == record["tokens"] + 2
        assert drawn.info["loop"] == 0, "for ever"


def test_only_on_request(picture, tmp_path):
    assert main(["cluster", str(picture), "--out", str(tmp_path / "out"), *GRID]) == 0
    assert listing(tmp_path / "out") == names("json", "png")


def test_results_are_not_taken_for_images(picture):
    folder = picture.parent
    command = ["cluster", str(folder), "--out", str(folder), *GRID, "--animate"]
    for kind in ("gif", "webp", "gif", "webp"):
        assert main([*command, kind]) == 0
    assert listing(folder) == [*names("gif", "json", "png", "webp"), "halves.png"]


def test_equal_input_gives_equal_animations(picture, tmp_path):
    for kind in ("gif", "webp"):
        for out in ("one", "two"):
            command = ["cluster", str(picture), "--out", str(tmp_path / out), *GRID]
            assert main([*command, "--animate", kind]) == 0
        one, two = (tmp_path / out / f"halves.clusters.{kind}" for out in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_an_animation_of_another_image_is_kept(picture, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "halves.clusters.gif").write_text("precious")
    assert main(["cluster", str(picture), "--out", str(out), *GRID, "--animate", "gif"]) == 0
    assert (out / "halves.clusters.gif").read_text() == "precious"
    second = names("gif", "json", "png", stem="halves-2")
    assert listing(out) == sorted([*names("gif"), *second])


@pytest.mark.parametrize("function", ["dpc_knn", "threshold_greedy"])
def test_only_cluster_tokens_has_steps(picture, tmp_path, capsys, function):
    out = tmp_path / "out"
    command = ["cluster", str(picture), "--out", str(out), "--function", function]
    assert main([*command, "--animate", "gif"]) == 2
    said = "--animate: expected the function cluster_tokens, whose steps it shows, got "
    assert said + function in capsys.readouterr().err and not out.exists()


def test_an_unknown_format(picture, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["cluster", str(picture), "--out", str(tmp_path / "out"), "--animate", "mp4"])
    assert "argument --animate: invalid choice: 'mp4'" in capsys.readouterr().err


def test_a_pillow_without_webp(picture, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("PIL.features.check", lambda name: name != "webp")
    out = tmp_path / "out"
    command = ["cluster", str(picture), "--out", str(out), *GRID, "--animate"]
    assert main([*command, "webp"]) == 2
    said = capsys.readouterr().err
    assert "--animate: expected a format that this Pillow writes, got webp" in said
    assert not out.exists()
    assert main([*command, "gif"]) == 0


def test_a_signal_leaves_no_half_animation(picture, tmp_path, capsys, monkeypatch):
    out, before = tmp_path / "out", animation.draw_frames
    command = ["cluster", str(picture), "--out", str(out), *GRID, "--animate", "gif"]
    assert main(command) == 0
    earlier = (out / "halves.clusters.gif").read_bytes()

    def stopped(result):
        os.kill(os.getpid(), signal.SIGTERM)
        return before(result)

    monkeypatch.setattr(animation, "draw_frames", stopped)
    assert main(command) == 128 + signal.SIGTERM
    assert listing(out) == names("gif", "json", "png")
    assert (out / "halves.clusters.gif").read_bytes() == earlier


def test_a_disk_that_is_full_at_the_animation(picture, tmp_path, capsys, monkeypatch):
    def full(result, path):
        path.write_bytes(b"GIF89a")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cluster_results, "save_animation", full)
    out = tmp_path / "out"
    assert main(["cluster", str(picture), "--out", str(out), *GRID, "--animate", "gif"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"cannot write the results of {picture}: [Errno 28] No space left on device" in said
    assert listing(out) == names("json", "png"), "nothing unfinished"
