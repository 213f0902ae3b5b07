"""The command `setok tokenize`."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from helpers.serial_engine import serial_engine  # noqa: F401
from helpers.tiny_setokim import build
from setok_bench.corpora import write_corpus
from setok_cli.main import main
from setokim.data.tokens.dataset import TokenDataset
from setokim.data.tokens.manifest import read_manifest
from setokim.tokenizer.identity import folder_identity
from setokim.utils.folder_lock import locked

COMMAND = [sys.executable, "-c", "from setok_cli.main import main; raise SystemExit(main())"]
OPTIONS = ["--encoder", "patch-statistics", "--grid", "6x6", "--max-failures", "50%"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, images=24, shards=4, broken=2, sides=(24, 40))
    return folder


def tokenize(source, out, *options, capsys=None):
    """Run the command in this process; return its exit code."""
    return main(["tokenize", str(source), "--out", str(out), *map(str, options)])


@pytest.mark.usefixtures("serial_engine")
def test_json_and_progress(source, tmp_path, capsys):
    assert tokenize(source, tmp_path / "out", *OPTIONS, "--json") == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["done"], found["images"], found["broken"], found["failed"]) == (4, 22, 2, [])
    assert "4/4 shards" in said.err
    assert tokenize(source, tmp_path / "out", *OPTIONS) == 0
    said = capsys.readouterr().out
    assert f"4 of 4 shards in {tmp_path / 'out'}: 22 images, " in said
    assert said.rstrip().endswith(", 2 broken")


@pytest.mark.usefixtures("serial_engine")
def test_a_missing_url_fails_alone_with_exit_code_1(source, tmp_path, capsys):
    name = f"{source}/shard-{{00000..00003}}.tar"
    gone = "http://localhost:9/gone.tar"
    code = main(["tokenize", name, gone, "--out", str(tmp_path / "out"), *OPTIONS])
    said = capsys.readouterr()
    assert code == 1
    assert f"setok tokenize: part 4: {gone}: " in said.err
    assert "4 of 5 shards" in said.out
    assert "The same command tries the failed parts again." in said.out


@pytest.mark.usefixtures("serial_engine")
@pytest.mark.parametrize("whole", [True, False], ids=["setokim", "setok"])
def test_the_tokenizer_of_a_model(source, tmp_path, whole, capsys):
    model, processor = build()
    kept = model if whole else model.setok
    kept.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    options = ("--model", tmp_path / "model", "--max-failures", "50%", "--what", "labels,tokens")
    assert tokenize(source, tmp_path / "out", *options) == 0, capsys.readouterr().err
    manifest = read_manifest(tmp_path / "out")
    assert manifest.layout.what == ("tokens", "labels")
    assert manifest.tokenizer["fingerprint"] == folder_identity(tmp_path / "model")
    dataset = TokenDataset(tmp_path / "out")
    assert dataset[0].image.tokens.shape[1] == model.setok.config.token_dim


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--what", "token", *OPTIONS], "what: expected names among tokens, labels, masks"),
        (["--max-failures", "x", *OPTIONS[:4]], "--max-failures: expected a number or"),
        (["--ray-address", "auto", *OPTIONS], "--ray-address: expected --engine ray, got local"),
        (["--decoders", "-1", *OPTIONS], "--decoders: expected at least 0, got -1"),
        (["--model", "nothing", "--grid", "6x6"], "--grid: expected none with --model"),
        (["--model", "nothing"], "model: expected a folder with a SeTokim model"),
        (["--encoder", "./nothing"], "encoder: expected 'patch-statistics', a folder with"),
        (["--device", "cuda", *OPTIONS], "device: expected a CUDA device"),
        (["--temperature", "0", *OPTIONS], "temperature"),
    ],
)
def test_bad_options(source, tmp_path, capsys, options, message):
    assert tokenize(source, tmp_path / "out", *options) == 2
    [line] = [one for one in capsys.readouterr().err.splitlines() if one.startswith("setok tok")]
    assert line.startswith(f"setok tokenize: {message}")


def test_model_or_encoder_is_required(source, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tokenize(source, tmp_path / "out")
    assert "one of the arguments --model --encoder is required" in capsys.readouterr().err


@pytest.mark.usefixtures("serial_engine")
def test_a_folder_that_cannot_be_written(source, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    assert tokenize(source, tmp_path / "file" / "out", *OPTIONS) != 0
    assert "Not a directory" in capsys.readouterr().err


def run(*arguments, **options):
    return subprocess.run(
        [*COMMAND, "tokenize", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def contents(folder):
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name != "metrics.jsonl" and not path.name.startswith(".lock")
    }


@pytest.mark.slow
def test_a_killed_run_a_full_disk_and_a_second_process(source, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    first = run(source, "--out", whole, *OPTIONS, "--workers", 2)
    assert first.returncode == 0, first.stderr

    # A full disk: no file may grow beyond 3 kB, less than a shard has.
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))

    full = run(source, "--out", out, *OPTIONS, "--workers", 1, preexec_fn=limit)
    assert full.returncode == 1
    assert "File too large" in full.stderr and "Traceback" not in full.stderr
    assert ".parquet" in full.stderr
    assert not list(out.glob("*.parquet")) and not (out / "shards.jsonl").exists()

    command = [*COMMAND, "tokenize", str(source), "--out", str(out), *OPTIONS, "--workers", "1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while not (out / "shards.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with locked(out):
        second = run(source, "--out", out, *OPTIONS)
    assert second.returncode == 2
    expected = f"--out: expected a folder that no process writes into, got {out}, held by process"
    assert expected in second.stderr
    again = run(source, "--out", out, *OPTIONS)
    assert again.returncode == 0, again.stderr
    assert contents(out) == contents(whole)
