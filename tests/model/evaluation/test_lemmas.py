"""Metrics of lemmatized answers."""

import json

import pytest

from helpers.published import okvqa, rewrite
from helpers.tiny_setokim import build
from setok_cli.main import main
from setokim.evaluation import lemmas
from setokim.evaluation.benchmarks import BENCHMARKS
from setokim.evaluation.lemmas import lemmatized, with_lemmas
from setokim.evaluation.prompting import Prompt, Response


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two dogs  running", "two dog run"),
        ("mice", "mouse"),
        ("bus", "bus"),
        ("jeans", "jeans"),
        ("2 glasses", "2 glass"),
        ("", ""),
    ],
)
def test_lemmas(text, expected):
    pytest.importorskip("simplemma")
    assert lemmatized(text) == expected


def test_both_metrics(monkeypatch):
    monkeypatch.setattr(lemmas, "lemmatized", lambda text: text.removesuffix("s"))
    metrics = with_lemmas(BENCHMARKS["okvqa"].metrics)
    answers = ["dog"] * 2 + ["dogs"] * 8
    rows = [
        Response(Prompt("vqa", number, 0, "", {"answers": answers}, ()), text)
        for number, text in enumerate(("dogs", "cat", "dog"))
    ]
    found = metrics(rows)
    two = (2 * 1 / 3 + 8 * 2 / 3) / 10
    assert found["accuracy"] == pytest.approx(100 * (1 + two) / 3)
    # The right answers stay.
    assert found["accuracy/lemmatized"] == pytest.approx(100 * 2 * two / 3)


def test_the_option(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lemmas, "lemmatized", lambda text: "b")
    data, model = tmp_path / "data", tmp_path / "model"
    data.mkdir()
    okvqa(data)
    change = {"answers": [{"answer": "b"}] * 10}
    path = data / "mscoco_val2014_annotations.json"
    rewrite(path, lambda v: [one.update(change) for one in v["annotations"]])
    for part in build():
        part.save_pretrained(model)
    where = ["--data", str(data), "--model", str(model), "--max-new-tokens", "2", "--lemmatize"]
    assert main(["eval", "--benchmark", "okvqa", *where, "--out", str(tmp_path / "out")]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["accuracy/lemmatized"] == 100 and metrics["accuracy"] < 100
    assert main(["eval", "--benchmark", "gqa", *where, "--out", str(tmp_path / "o")]) == 2
    assert "--lemmatize: expected one of the benchmarks okvqa, " in capsys.readouterr().err
