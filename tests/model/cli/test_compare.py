"""`setok compare`."""

import json
import shutil

import pytest

from helpers.published import PUBLISHED
from helpers.tiny_setokim import build
from setok_cli.main import main


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folders of POPE's two answers, of other samples and of another benchmark."""
    root = tmp_path_factory.mktemp("results")
    for part in build():
        part.save_pretrained(root / "model")
    for name in ("pope", "gqa"):
        (root / name).mkdir()
        PUBLISHED[name][0](root / name)

    def evaluate(out, name, *options):
        where = ["--data", str(root / name.partition("-")[0]), "--model", str(root / "model")]
        command = ["eval", "--benchmark", name, *where, "--out", str(root / out), *options]
        assert main([*command, "--max-new-tokens", "2"]) == 0

    evaluate("a", "pope-random")
    evaluate("fewer", "pope-random", "--samples", "2")
    evaluate("other", "gqa")
    # Other answers of the same questions: each an uncertain word of the tiny model, now "no".
    shutil.copytree(root / "a", root / "b")
    path = root / "b" / "predictions.jsonl"
    lines = [json.loads(line) | {"said": "no"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluate("b", "pope-random")
    return root


def test_two_runs(results, capsys):
    a, b = str(results / "a"), str(results / "b")
    assert main(["compare", a, b]) == 0
    table = capsys.readouterr().out
    assert "metric" in table and "accuracy" in table and "p-value" in table
    assert main(["compare", a, b, "--json", "--resamples", "50"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["benchmark"] == "pope-random" and found["resamples"] == 50
    row = found["figures"]["yes_ratio"]
    assert row["difference"] == row["a"] - row["b"] and row["b"] == 0 < row["a"]
    assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    assert 1 / 51 <= row["p_value"] <= 1 and row["samples"] == 3 and row["definition"]
    assert found["figures"]["samples"]["interval"] is None
    assert found["only"] == {"a": [], "b": []}


@pytest.mark.parametrize(
    ("b", "said"),
    [
        ("fewer", "expected the samples of A with the same questions and facts"),
        ("other", "expected the benchmark of A, 'pope-random', got 'gqa'"),
        ("nowhere", "No such file"),
    ],
)
def test_other_runs_are_refused(b, said, results, capsys):
    assert main(["compare", str(results / "a"), str(results / b)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("setok compare: ") and said in line


def test_intervals_are_printed(results, capsys):
    command = ["eval", "--benchmark", "pope-random", "--data", str(results / "pope")]
    where = ["--model", str(results / "model"), "--out", str(results / "a")]
    assert main([*command, *where, "--max-new-tokens", "2"]) == 0
    [line] = [one for one in capsys.readouterr().out.splitlines() if " accuracy " in one]
    assert line.endswith("]") and line.count(", ") == 1
