"""`setok eval` with interrupted runs, other weights, damaged files or a second process."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file, save_file

from helpers.published import PUBLISHED, save
from helpers.tiny_setokim import build
from setok_cli.main import main
from setokim.evaluation import benchmarks
from setokim.evaluation.fingerprint import fingerprint
from setokim.utils.folder_lock import locked

_STOPS_AT_THE_THIRD_BATCH = """
import sys, time
from setok_cli.main import main
from setokim.evaluation import run

generate_responses, batches = run.generate_responses, []

def stops(*arguments):
    batches.append(1)
    if len(batches) == 3:
        print("waits", flush=True)
        time.sleep(600)
    return generate_responses(*arguments)

run.generate_responses = stops
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for part in build():
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture
def command(model, tmp_path):
    """Return the command line that scores a benchmark on its files."""

    def of(name, *options):
        data = tmp_path / "data"
        if not data.exists():
            data.mkdir()
            PUBLISHED[name][0](data)
        where = ["--data", str(data), "--model", str(model), "--out", str(tmp_path / "out")]
        return ["eval", "--benchmark", name, *where, "--max-new-tokens", "2", *options]

    return of


def figures_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def train_on(model):
    """Change one weight; the name and size of the file stay the same."""
    path = model / "model.safetensors"
    weights = load_file(path)
    name = max(weights, key=lambda one: weights[one].numel())
    weights[name].flatten()[-1] += 1
    save_file(weights, path, {"format": "pt"})


def test_answers_of_other_weights_are_refused(model, command, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command("gqa")) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert main(command("gqa")) == 0
    train_on(model)
    assert main(command("gqa")) == 2
    assert "run.json, got others of weights; use another folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_files_that_answers_depend_on_are_in_the_fingerprint(model):
    first = fingerprint(model)
    for name in ("metrics.json", "README.md", "losses.jsonl"):
        (model / name).write_text("{}")
    (model / "checkpoint-1").mkdir()
    (model / "checkpoint-1" / "model.safetensors").write_bytes(b"")
    assert fingerprint(model) == first and len(first) == 64
    seen = {first}
    for name in (
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):
        with (model / name).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read()
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))
        seen.add(fingerprint(model))
    (model / "tokenizer.json").rename(model / "tokenizer2.json")
    assert len(seen) == 7 and fingerprint(model) not in seen


def test_a_folder_in_use_by_another_process(command, tmp_path, capsys):
    with locked(tmp_path / "out"):
        assert main(command("gqa")) == 2
    said = capsys.readouterr().err
    assert "gqa: --out: expected a folder that no process writes into" in said
    assert f"held by process {os.getpid()}" in said and not (tmp_path / "out/run.json").exists()
    assert main(command("gqa")) == 0


def test_a_stopped_process_keeps_its_answers(model, tmp_path):
    world = {"kind": "shapes-tasks", "size": 32, "seed": 1, "samples": 200}
    options = {"objects": [1, 2], "turns": 1, "tasks": {"text": 1}}
    path = tmp_path / "stage3.yaml"
    generation = {"max_new_tokens": 2, "sampling_steps": 1}
    values = {"stage": 3, "steps": 1, "start": "nowhere", "held_out": world | {"options": options}}
    path.write_text(yaml.safe_dump(values | {"generation": generation, "optimizer": {"warmup": 1}}))
    out = tmp_path / "out"
    command = ["eval", "--model", model, "--benchmark", "shapes-world", "--data", path]
    command = [str(word) for word in [*command, "--out", out]]
    process = subprocess.Popen(
        [sys.executable, "-c", _STOPS_AT_THE_THIRD_BATCH, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"waits\n", process.communicate()[1]
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode != 0 and not (out / "metrics.json").exists()
    kept = (out / "predictions.jsonl").read_bytes()
    assert kept.count(b"\n") == 128
    assert main(command) == 0
    lines = (out / "predictions.jsonl").read_bytes()
    assert lines.startswith(kept) and figures_of(out)["samples"] == 200
    found = [json.loads(line)["number"] for line in lines.split(b"\n")[:-1]]
    assert sorted(found) == list(range(200))


def test_metrics_that_fail_lose_no_answer(command, tmp_path, capsys, monkeypatch):
    def fails(rows):
        raise KeyError("label")

    benchmark = benchmarks.BENCHMARKS["gqa"]
    broken = dataclasses.replace(benchmark, metrics=fails)
    monkeypatch.setitem(benchmarks.BENCHMARKS, "gqa", broken)
    out = tmp_path / "out"
    assert main(command("gqa")) == 2
    assert "predictions.jsonl has all answers, no metrics: KeyError: 'label'" in (
        capsys.readouterr().err
    )
    # The submission needs no metrics.
    assert len(json.loads((out / "submission.json").read_text())) == 3
    assert not (out / "metrics.json").exists()
    lines = (out / "predictions.jsonl").read_bytes()
    monkeypatch.setitem(benchmarks.BENCHMARKS, "gqa", benchmark)
    assert main(command("gqa")) == 0
    assert figures_of(out)["samples"] == 3 and (out / "predictions.jsonl").read_bytes() == lines


def test_one_of_all_benchmarks_fails(model, tmp_path, capsys):
    for name in ("gqa", "flickr30k"):
        (tmp_path / "data" / name).mkdir(parents=True)
        PUBLISHED[name][0](tmp_path / "data" / name)
    (tmp_path / "data" / "gqa" / "testdev_balanced_questions.json").write_text("{}")
    where = ["--data", str(tmp_path / "data"), "--model", str(model), "--out", str(tmp_path / "o")]
    assert main(["eval", "--all", *where, "--max-new-tokens", "2"]) == 1
    captured = capsys.readouterr()
    assert "setok eval: gqa: expected at least one sample in " in captured.err
    assert "flickr30k          cider" in captured.out
    assert figures_of(tmp_path / "o" / "flickr30k")["samples"] == 3


def test_metrics_as_json(model, command, tmp_path, capsys):
    assert main([*command("gqa"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    speed = found.pop("throughput")["gqa"]
    assert (speed["answers"], speed["processes"]) == (3, 1) and speed["answers_per_second"] > 0
    assert found == {
        "metrics": {"gqa": figures_of(tmp_path / "out")},
        "figures": {"gqa": json.loads((tmp_path / "out" / "figures.json").read_text())},
        "failed": [],
        "out": str(tmp_path / "out"),
    }
    (tmp_path / "all" / "gqa").mkdir(parents=True)
    where = ["--data", str(tmp_path / "all"), "--model", str(model), "--out", str(tmp_path / "o")]
    assert main(["eval", "--all", *where, "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "metrics": {},
        "figures": {},
        "throughput": {},
        "failed": ["gqa"],
        "out": str(tmp_path / "o"),
    }
    assert "setok eval: gqa: " in printed.err


def test_incomplete_mme(command, tmp_path):
    # "existence" comes after "OCR", and "eval_tool" is no subtask.
    line = command("mme")
    save(tmp_path / "data" / "eval_tool" / "1.jpg", 1)
    (tmp_path / "data" / "eval_tool" / "1.txt").write_text("Is it?\tYes\nIs it not?\tNo\n")
    assert main([*line, "--samples", "3"]) == 0
    found = figures_of(tmp_path / "out")
    assert (found["samples"], found["left_out"]) == (3, 1) and "OCR/acc" in found
    (tmp_path / "data" / "existence" / "1.txt").write_text("Is it?\tYes\nIs it not?")
    line[line.index("--out") + 1] = str(tmp_path / "other")
    assert main([*line, "--allow-missing"]) == 0
    found = figures_of(tmp_path / "other")
    # Both questions of the stray folder, and the readable one of the image with a damaged line.
    assert (found["samples"], found["broken"], found["left_out"]) == (5, 1, 3)
    assert "OCR/acc" in found and "existence/acc" not in found


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda m: (m / "model.safetensors").unlink(), "no file named model.safetensors"),
        (lambda m: (m / "model.safetensors").write_bytes(b""), "got a damaged file"),
        (lambda m: os.truncate(m / "model.safetensors", 5000), "got a damaged file"),
        (lambda m: (m / "config.json").write_text("[]"), "got one of type None"),
        (lambda m: (m / "tokenizer.json").write_text("{"), "cannot load"),
        (lambda m: (m / "preprocessor_config.json").write_text("[]"), "cannot load"),
        (lambda m: drop_weight(m), "the folder lacks 1, such as "),
        (lambda m: shutil.rmtree(m), "expected a folder with a SeTokim model"),
    ],
)
def test_a_damaged_model(damage, reason, model, command, tmp_path, capsys):
    damage(model)
    capsys.readouterr()
    assert main(command("gqa")) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "setok eval" in line]
    assert len(said) == 1 and "--model: " in said[0] and reason in said[0]
    assert not (tmp_path / "out").exists()


def drop_weight(model):
    weights = load_file(model / "model.safetensors")
    weights.pop(min(weights))
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def test_an_unusable_out(command, tmp_path, capsys):
    line, out = command("gqa"), tmp_path / "out"
    out.write_text("")
    assert main(line) == 2
    assert "gqa: [Errno 17] File exists" in capsys.readouterr().err
    out.unlink()
    assert main(line) == 0
    (out / "run.json").write_bytes(b"\x00" * 100)
    assert main(line) == 2
    assert "run.json:1:1: expected JSON, got Expecting value; use another" in (
        capsys.readouterr().err
    )


def test_only_one_benchmark_has_descriptions(command, capsys):
    assert main(command("gqa", "--descriptions", "global")) == 2
    assert "--descriptions: expected the benchmark magicbrush, got gqa" in capsys.readouterr().err
