"""`setok score` on files of answers, without a model."""

import json
import subprocess
import sys

import pytest
import yaml

from helpers.prediction_files import FOLDERS, data_of, write_lines
from helpers.tiny_setokim import build
from setok_cli.main import main

VQA = [{"question_id": 10 * i, "answer": "b é\u2028"} for i in (1, 2, 3)]


@pytest.fixture
def command(tmp_path):
    """Return the command line that scores rows, or a file, on the files of a benchmark."""

    def of(name, rows, *options):
        data = tmp_path / FOLDERS.get(name, name)
        if not data.exists():
            data_of(name, data)
        path = rows if hasattr(rows, "exists") else write_lines(tmp_path / "a.jsonl", rows)
        where = ["--data", str(data), "--predictions", str(path)]
        return ["score", "--benchmark", name, *where, *map(str, options)]

    return of


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_metrics_are_those_of_the_evaluation(command, tmp_path, capsys):
    for part in build():
        part.save_pretrained(tmp_path / "model")
    for name in ("mme", "aokvqa"):
        data, out = data_of(name, tmp_path / name), tmp_path / "out" / name
        where = ["--data", str(data), "--model", str(tmp_path / "model"), "--out", str(out)]
        assert main(["eval", "--benchmark", name, *where, "--max-new-tokens", "3"]) == 0
        capsys.readouterr()
        assert main([*command(name, out / "predictions.jsonl"), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        evaluated = json.loads((out / "metrics.json").read_text())
        assert evaluated.items() <= found["metrics"].items()
        assert (found["format"], found["matched_by"]) == ("setok", "own")


def test_generated_images_of_a_log(tmp_path, capsys):
    """Those of shapes-world, whose metrics read them."""
    for part in build():
        part.save_pretrained(tmp_path / "model")
    world = {"kind": "shapes-tasks", "size": 32, "seed": 1, "samples": 6}
    options = {"objects": [2, 3], "turns": 2, "tasks": {"vqa": 1, "generate": 1, "segment": 1}}
    values = {"stage": 3, "steps": 1, "start": "nowhere", "held_out": world | {"options": options}}
    generation = {"max_new_tokens": 3, "sampling_steps": 1}
    path = tmp_path / "stage3.yaml"
    path.write_text(yaml.safe_dump(values | {"generation": generation, "optimizer": {"warmup": 1}}))
    where = ["--benchmark", "shapes-world", "--data", str(path)]
    out = tmp_path / "out"
    model = ["--model", str(tmp_path / "model"), "--out", str(out)]
    assert main(["eval", *where, *model]) == 0
    capsys.readouterr()
    line = ["score", *where, "--predictions", str(out / "predictions.jsonl"), "--json"]
    assert main([*line, "--out", str(tmp_path / "again")]) == 0
    evaluated = json.loads((out / "metrics.json").read_text())
    scored = json.loads(capsys.readouterr().out)["metrics"]
    assert {k: v for k, v in evaluated.items() if v == v}.items() <= scored.items()
    # The evaluation writes its batches in the order in which they are full.
    logs = [folder / "predictions.jsonl" for folder in (out, tmp_path / "again")]
    first, second = (sorted(path.read_bytes().split(b"\n")) for path in logs)
    assert first == second


def test_all_outputs(command, tmp_path, capsys):
    out, upload, export = (tmp_path / name for name in ("out", "upload.json", "b.jsonl"))
    outputs = ["--out", out, "--submission", upload, "--export", "llava", export]
    assert main(command("vqav2", [*VQA[1:], VQA[1], VQA[0]], *outputs)) == 0
    captured = capsys.readouterr()
    assert "vqav2              accuracy" in captured.out and "samples" in captured.out
    assert captured.err == "setok score: vqav2: 1 rows repeat an earlier one\n"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["samples"] == 3 and metrics["duplicates"] == 1
    assert [line["said"] for line in lines_of(out / "predictions.jsonl")] == ["b é\u2028"] * 3
    assert json.loads(upload.read_text(encoding="utf-8")) == VQA
    assert [line["question_id"] for line in lines_of(export)] == [10, 20, 30]
    # Each file gives the same metrics.
    for path in (out / "predictions.jsonl", upload, export):
        assert main([*command("vqav2", path), "--json"]) == 0
        again = json.loads(capsys.readouterr().out)["metrics"]
        assert again == metrics | {"duplicates": 0}


def test_an_existing_folder(command, tmp_path, capsys):
    out = tmp_path / "out"
    line = command("vqav2", VQA, "--out", out)
    assert main(line) == 0
    before = (out / "predictions.jsonl").read_bytes()
    # A killed run is finished by the same command.
    (out / "metrics.json").unlink()
    (out / "predictions.jsonl").write_bytes(before[:-20])
    assert main(line) == 0
    assert (out / "predictions.jsonl").read_bytes() == before and (out / "metrics.json").exists()
    assert main(command("vqav2", VQA[::-1], "--out", out)) == 2
    assert "got others of sha256; use another folder" in capsys.readouterr().err
    assert (out / "predictions.jsonl").read_bytes() == before


def test_missing_and_unknown_answers(command, tmp_path, capsys):
    rows = [*VQA[:2], {"question_id": 5, "answer": "a"}]
    out = ["--out", tmp_path / "out"]
    assert main(command("vqav2", rows, *out)) == 2
    assert "1 of 3 have no prediction, such as " in capsys.readouterr().err
    assert main(command("vqav2", rows, "--allow-missing", *out)) == 2
    assert "1 of 3 for no question, such as 5 in " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(command("vqav2", rows, "--allow-missing", "--allow-unknown", *out)) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("setok score: vqav2: 1 questions have no answer, such as ")
    assert said[1].startswith("setok score: vqav2: 1 answers are to no question, such as 5 in ")
    # The first samples only.
    assert main([*command("vqav2", VQA[:2], "--samples", 2), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["samples"] == 2


def test_a_split_without_answers(command, tmp_path, capsys):
    data = data_of("gqa", tmp_path / "gqa")
    path = data / "test_balanced_questions.json"
    whole = json.loads((data / "testdev_balanced_questions.json").read_text())
    path.write_text(json.dumps({k: v | {"answer": None} for k, v in whole.items()}))
    hidden = {k: {n: x for n, x in v.items() if n != "answer"} for k, v in whole.items()}
    path.write_text(json.dumps(hidden))
    rows = [{"question_id": f"0{i}", "text": "Yes."} for i in (1, 2, 3)]
    line = command("gqa", rows, "--split", "test_balanced")
    assert main(line) == 2
    assert "expected a split with public answers, got 'test_balanced'" in capsys.readouterr().err
    assert main([*line, "--submission", str(tmp_path / "s.json"), "--json"]) == 0
    assert "accuracy" not in json.loads(capsys.readouterr().out)["metrics"]
    assert [one["prediction"] for one in json.loads((tmp_path / "s.json").read_text())] == [
        "yes"
    ] * 3


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("nothing", [], "--benchmark: expected one of vqav2, "),
        ("magicbrush", [], "--benchmark: expected a benchmark of texts or masks, got 'magicbrush'"),
        ("coco-panoptic", [], "--benchmark: expected a benchmark of texts or masks"),
        ("mm-vet", [], "mm-vet: expected --submission or --export, since a judge scores mm-vet"),
        ("vqav2", ["--samples", 0], "--samples: expected at least 1, got 0"),
        ("vqav2", ["--split", "val"], "vqav2: root: expected v2_OpenEnded_mscoco_val_questions"),
        ("vqav2", ["--format", "csv"], "vqav2: format: expected one of setok, llava, lmms-eval"),
        ("vqav2", ["--export", "csv", "a"], "vqav2: format: expected one of setok, llava"),
        ("vqav2", ["--predictions", "absent"], "vqav2: [Errno 2] No such file"),
    ],
)
def test_unusable_arguments(name, options, reason, command, tmp_path, capsys):
    data_of("vqav2", tmp_path / "data")
    where = ["--data", tmp_path / "data", "--predictions", write_lines(tmp_path / "a", VQA)]
    line = ["score", "--benchmark", name, *where, *options]
    assert main([str(word) for word in line]) == 2
    assert reason in capsys.readouterr().err


def test_without_openpyxl(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    path = tmp_path / "a.xlsx"
    path.write_bytes(b"PK\x03\x04")
    assert main(command("vqav2", path)) == 2
    assert 'needs openpyxl: pip install "setok-kernels[score]"' in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = "import sys, setokim.cli.score; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
