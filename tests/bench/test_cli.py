import json
import subprocess
import sys
from pathlib import Path

import pytest

from setok_bench import results
from setok_cli.main import main

SCRIPT = Path(__file__).parent.parent.parent / "bench/run.py"


def test_a_small_run(tmp_path, capsys):
    out = tmp_path / "new" / "result.json"
    arguments = ["bench", "--device", "cpu", "--only", "cluster_tokens", "--shapes", "2x40x8"]
    assert main([*arguments, "--seconds", "0.1", "--rounds", "5", "--out", str(out)]) == 0
    (row,) = results.load_result(out)["rows"]
    assert row["shape"]["tokens"] == 40
    assert {c["status"] for c in row["contenders"].values()} == {"timed"}
    said = capsys.readouterr().out
    assert "2 x 40 x 8" in said and "over bmm" in said and str(out) in said


def test_the_result_as_json(tmp_path, capsys):
    out = tmp_path / "result.json"
    arguments = ["bench", "--device", "cpu", "--only", "dpc_knn", "--shapes", "1x20x4", "--json"]
    assert main([*arguments, "--seconds", "0.1", "--rounds", "5", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == results.load_result(out)
    assert f"written to {out}" in printed.err


def test_the_plan_as_json(capsys):
    assert main(["bench", "--plan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    [device] = found["devices"]
    parts = {part["name"]: part for part in device["parts"]}
    first = parts["tokenize 28 M images"]
    assert first["hours"] > 0 and first["days"] == first["hours"] / found["gpus"] / 24
    assert device["sources"] and found["assumptions"]


def test_a_wrong_result_of_ours_fails(monkeypatch, capsys):
    def wrong(case, result):
        raise AssertionError("seed 3 was a seed before")

    monkeypatch.setattr("setok_kernels.testing.assert_valid_decisions", lambda *_: wrong(*_[:2]))
    arguments = ["bench", "--device", "cpu", "--only", "cluster_tokens", "--shapes", "1x30x8"]
    assert main([*arguments, "--seconds", "0.1"]) == 1
    captured = capsys.readouterr()
    assert "cpp: failed, seed 3 was a seed before" in captured.out
    assert "wrong result: cluster_tokens cpp" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "gpu", "--device", "cpu"], "suite: 'gpu' is for a cuda device, got cpu"),
        (["--device", "tpu"], "device: expected cpu or cuda, got 'tpu'"),
        (["--only", "nothing", "--device", "cpu"], "only: expected some of"),
        (["--shapes", "7x7", "--device", "cpu"], "shape: expected BxNxD"),
        (["--plan", "nowhere.json"], "nowhere.json"),
    ],
)
def test_errors_are_the_users(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_a_result_needs_is_asked_for_before_measuring():
    blocked = "import sys; sys.modules['jsonschema'] = None\n"
    command = "from setok_cli.main import main\nsys.exit(main(sys.argv[1:]))"
    # It would take hours.
    arguments = ["bench", "--device", "cpu", "--seconds", "36000", "--only", "cluster_tokens"]
    done = subprocess.run(
        [sys.executable, "-c", blocked + command, *arguments],
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "jsonschema" in done.stderr and "pip install" in done.stderr
    doctor = subprocess.run([sys.executable, "-c", blocked + command, "doctor"], timeout=300)
    assert doctor.returncode == 0


def test_a_result_that_does_not_fit_is_kept(tmp_path, monkeypatch, capsys):
    def refuse(result):
        raise ValueError("rows/0: 7 is not of type 'object'")

    monkeypatch.setattr("setok_bench.run.validate", refuse)
    out = tmp_path / "result.json"
    arguments = ["bench", "--device", "cpu", "--only", "dpc_knn", "--shapes", "1x20x4"]
    assert main([*arguments, "--seconds", "0.1", "--out", str(out)]) == 2
    assert "rows/0: 7 is not" in capsys.readouterr().err
    assert json.loads(out.read_text())["rows"]


def test_the_plan(capsys):
    assert main(["bench", "--plan"]) == 0
    assert "tokenize 28 M" in capsys.readouterr().out


def test_the_script_is_the_same_command(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, SCRIPT, "--device", "cpu", "--only", "dpc_knn"]
    command += ["--shapes", "1x20x4", "--seconds", "0.1", "--out", out]
    done = subprocess.run(command, text=True, capture_output=True, check=True)
    assert "dpc_knn" in done.stdout
    assert json.loads(out.read_text())["command"][0] == "run.py"
