"""Files of metrics, and comparisons of two folders."""

import json
import math

import pytest

from setokim.evaluation.comparison import compare_folders
from setokim.evaluation.figure_files import Scored, read_figures, write_figures
from setokim.evaluation.figures import Figures


def figures_of(values, order=None):
    order = list(range(len(values))) if order is None else order
    found = Figures()
    table = found.table([f"q{index}" for index in order], "image")
    table.mean("accuracy", [values[index] for index in order], "mean of all", scale=100)
    found.constant("samples", len(values), "answered samples")
    return found


SCORED = Scored("gqa", "val", 4, 2, 1)


def write(folder, figures, scored=SCORED):
    folder.mkdir()
    write_figures(folder, figures, scored)
    return folder


def test_the_files_have_all_facts(tmp_path):
    folder = write(tmp_path / "a", figures_of([0, 1, 0.1 + 0.2, 1]))
    report = json.loads((folder / "figures.json").read_text())
    figure = report["figures"]["accuracy"]
    assert figure.pop("interval")[0] < figure.pop("value")
    assert figure == {"samples": 4, "unit": "image", "definition": "mean of all"}
    assert report["figures"]["samples"]["reason"] == "it is a count"
    assert (report["samples"], report["missing"], report["broken"]) == (4, 2, 1)
    assert (report["confidence"], report["resamples"]) == (0.95, 1000)
    assert report["scorer"].startswith("setok-kernels ") and "rules" in report["scorer"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == figures_of([0, 1, 0.1 + 0.2, 1])
    scored, found = read_figures(folder)
    assert found == metrics and (scored.benchmark, scored.split) == ("gqa", "val")
    again = write(tmp_path / "b", found)
    assert (again / "statistics.json").read_bytes() == (folder / "statistics.json").read_bytes()


def test_numbers_that_json_lacks(tmp_path):
    found = figures_of([0, 1])
    found.table(["a"], name="t").ratio("x", [0], [0], "nothing")
    folder = write(tmp_path / "a", found)
    assert "NaN" not in (folder / "figures.json").read_text()
    report = json.loads((folder / "figures.json").read_text())["figures"]["x"]
    assert report["value"] is None and report["reason"] == "no resample has a finite value"
    assert math.isnan(read_figures(folder)[1]["x"])


def test_samples_are_compared_in_pairs_whatever_their_order(tmp_path):
    values = [0, 1, 1, 0, 1, 1, 0, 1]
    one = write(tmp_path / "a", figures_of(values))
    other = write(tmp_path / "b", figures_of(values, [3, 1, 0, 2, 7, 6, 5, 4]))
    name, _, _, found = compare_folders(one, other)
    assert name == "gqa" and found["accuracy"].interval == (0, 0) and found["accuracy"].p_value == 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: (figures_of([1] * 5), SCORED), "A lacks 1 of 5, such as 'q4'"),
        (lambda: (figures_of([1] * 2), SCORED), "B lacks 2 of 4, such as 'q2', 'q3'"),
        (
            lambda: (figures_of([1] * 4), Scored("vqav2", "val")),
            "B: expected the benchmark of A, 'gqa', got 'vqav2'",
        ),
        (
            lambda: (figures_of([1] * 4), Scored("gqa", "test")),
            "B: expected the split of A, 'val', got 'test'",
        ),
    ],
)
def test_other_samples_are_refused(make, said, tmp_path):
    one = write(tmp_path / "a", figures_of([0, 1, 0, 1]))
    other = write(tmp_path / "b", *make())
    with pytest.raises(ValueError, match=said):
        compare_folders(one, other)


@pytest.mark.parametrize(
    "damage",
    [
        lambda plain: plain.pop("units"),
        lambda plain: plain["figures"]["accuracy"]["ratios"][0][1].pop(),
        lambda plain: plain["figures"]["accuracy"].update(ratios=[["other", [1], [1]]]),
        lambda plain: plain.update(figures=[]),
        lambda plain: plain["figures"]["accuracy"].update(ratios=[["", ["x"] * 2, [1] * 2]]),
    ],
)
def test_damaged_statistics(damage, tmp_path):
    folder = write(tmp_path / "a", figures_of([0, 1]))
    plain = json.loads((folder / "statistics.json").read_text())
    damage(plain)
    (folder / "statistics.json").write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=r"statistics.json: expected statistics of metrics"):
        compare_folders(folder, folder)
    (folder / "statistics.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        compare_folders(folder, folder)
