"""`setok explore` with arguments that do not fit; tests/model/explorer drives the page."""

import json
import socket
import sys

import pytest

from helpers.cluster_files import two_halves
from setok_cli.main import main


def refused(capsys, *words):
    assert main(["explore", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_bad_images_are_named(tmp_path, capsys):
    path = tmp_path / "text.jpg"
    path.write_text("no image")
    assert f"cannot read {path}: not an image of a known format" in refused(capsys, path)
    assert "No such file" in refused(capsys, tmp_path / "absent.png")


def test_models_that_are_none(tmp_path, capsys):
    assert "--model: expected a folder with a SeTokim model" in refused(capsys, "--model", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "--model: expected a SeTokim model" in refused(capsys, "--model", tmp_path)
    said = refused(capsys, "--encoder", tmp_path / "absent")
    assert "encoder: expected 'patch-statistics', a folder with a config.json" in said


def test_a_models_encoder_has_its_own_grid(capsys):
    said = refused(capsys, "--model", "small-world", "--grid", "3x3")
    assert "--grid: expected none with --model" in said


def test_an_encoder_and_a_model_exclude_each_other(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["explore", "--model", "small-world", "--encoder", "x"])
    assert "not allowed with" in capsys.readouterr().err


def test_a_port_in_use_is_named(tmp_path, capsys):
    two_halves().save(tmp_path / "a.png")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        said = refused(capsys, tmp_path / "a.png", "--port", port)
    assert f"--port: expected a free one, got {port}, which cannot be used" in said
    assert "--port: expected 1 to 65535, got 70000" in refused(capsys, "--port", 70000)
    assert "--host: expected an address of this machine" in refused(capsys, "--host", "a..b")


def test_a_port_taken_while_the_model_loads_is_named(tmp_path, capsys, monkeypatch):
    server = pytest.importorskip("setokim.explorer.server")
    two_halves().save(tmp_path / "a.png")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setattr(server, "free_port", lambda host, port: port)
        said = refused(capsys, tmp_path / "a.png", "--port", port)
    assert f"--port: expected a free one, got {port}, where no server started" in said


def test_without_gradio_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert 'needs gradio: pip install "setok-kernels[explore]"' in refused(capsys)
