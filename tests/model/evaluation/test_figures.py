"""Metrics with the statistics of each unit."""

import math

import pytest

from helpers.published import PUBLISHED
from setokim.evaluation import prompting
from setokim.evaluation.benchmarks import BENCHMARKS
from setokim.evaluation.figures import Figure, Figures
from setokim.evaluation.prompting import Response

FOLDERS = {"aokvqa-choice": "aokvqa", "pope-random": "pope"} | {
    f"pope-{data}-{split}": f"pope-{data}"
    for data in ("aokvqa", "gqa")
    for split in ("random", "popular", "adversarial")
}
# Of shapes-world and images there are other tests; two splits of POPE differ in their file alone.
ELSEWHERE = ("shapes-world", "pope-popular", "pope-adversarial")


def test_values_and_the_units_that_count():
    found = Figures()
    table = found.table(["a", "b", "c", "d"], "image", "one")
    table.mean("mean", [1, 2, 3, 4], "mean", scale=10)
    table.mean("part", [1, math.nan, math.nan, 4], "part", [True, False, False, True])
    table.ratio("ratio", [1, 2, 0, 0], [2, 4, 0, 0], "ratio")
    table.ratio("empty", [0] * 4, [0] * 4, "empty", empty=1.0)
    found.table(["a"], name="two").mean("other", [5], "other", scale=10)
    found.total("total", ["mean", "other"], "sum")
    found.total("nothing", [], "sum of nothing")
    found.constant("count", 3, "a count")
    assert found == {
        **{"mean": 25, "part": 2.5, "ratio": 0.5, "empty": 1, "other": 50},
        **{"total": 75, "nothing": 0, "count": 3},
    }
    samples = {name: figure.samples for name, figure in found.details.items()}
    assert samples == {
        **{"mean": 4, "part": 2, "ratio": 2, "empty": 0, "other": 1},
        **{"total": 5, "nothing": None, "count": None},
    }
    assert found.details["mean"].unit == "image" and found.details["nothing"].reason


def test_a_part_is_included_under_its_name():
    whole, own = Figures(), Figures()
    for figures, values in ((whole, [1, 2]), (own, [2])):
        figures.table([str(value) for value in values]).mean("a", values, "mean")
    whole.include(own, "long")
    assert whole == {"a": 1.5, "a/long": 2} and whole.units == {"": ("1", "2"), "/long": ("2",)}
    assert [ratio.table for ratio in whole.details["a/long"].ratios] == ["/long"]
    with pytest.raises(ValueError, match="expected new tables, got '/long' again"):
        whole.include(own, "long")


def test_a_plain_dictionary_has_no_definitions():
    found = Figures.of({"accuracy": 50.0})
    assert found == {"accuracy": 50.0} and found.details["accuracy"].definition == "not stated"
    own = Figures()
    own.table(["a"]).mean("x", [1], "mean")
    for found in (own | {"y": 2.0}, Figures.of(own | {"y": 2.0})):
        assert found == {"x": 1, "y": 2.0} and own == {"x": 1}
        assert found.details["y"].reason and found.details["x"].ratios
    own |= {"y": 2.0}
    found = Figures.of(own)
    assert found == {"x": 1, "y": 2.0} and found.details["y"].reason and found.details["x"].ratios


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda f, t: t.mean("a", [1, 2], "", [False] * 2), "a: expected at least one question"),
        (lambda f, t: t.mean("a", [1], ""), r"a: expected 2 values, got \(1,\)"),
        (lambda f, t: t.mean("x", [1, 2], ""), "name: expected a new metric, got 'x' again"),
        (lambda f, t: t.bleu("a", 1.0, [[1]], [[1]], [1], [1], ""), "a: expected 2 values"),
        (
            lambda f, t: Figure("", form="product"),
            "form: expected one of sum, bleu, pearson, got 'product'",
        ),
        (lambda f, t: f.table(["c"]), "name: expected a new table, got '' again"),
        (lambda f, t: f.table(["c", "c"], name="2"), "units: expected different names, got 2"),
    ],
)
def test_faults(fault, said):
    found = Figures()
    table = found.table(["a", "b"])
    table.mean("x", [0, 1], "mean")
    with pytest.raises(ValueError, match=said):
        fault(found, table)


@pytest.mark.usefixtures("no_meteor")
@pytest.mark.parametrize(
    "name", [n for n, one in BENCHMARKS.items() if one.metrics and n not in ELSEWHERE]
)
def test_each_metric_of_a_benchmark_has_statistics_and_a_definition(name, tmp_path):
    key = FOLDERS.get(name, name)
    if key.startswith("refcoco"):
        pytest.importorskip("pycocotools")
    PUBLISHED[key][0](tmp_path)
    benchmark = BENCHMARKS[name]
    dataset = benchmark.open(tmp_path)
    rows = [
        Response(question, "yes")
        for index in range(len(dataset))
        for question in prompting.prompts_of(index, dataset[index])
    ]
    found = benchmark.metrics(rows)
    assert isinstance(found, Figures) and found.details.keys() == found.keys()
    for metric, figure in found.details.items():
        assert len(figure.definition) > 5 and "not stated" not in figure.definition
        without = ("left_out", "cognition")
        assert figure.ratios or (metric in without and figure.reason)
