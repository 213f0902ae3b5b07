"""Intervals and tests on data with a known truth, and against metrics of repeated rows."""

import math
import time
from collections import Counter

import numpy as np
import pytest
from scipy.stats import kstest

from setokim.evaluation.figures import Figures
from setokim.evaluation.resampling import (
    _bootstrap_counts,
    bootstrap_intervals,
    compare_figures,
)
from setokim.evaluation.segmentation_scores import SegmentationScore
from setokim.evaluation.yes_no import MmeRecord, mme_scores, pope_scores


def names(number):
    return [str(index) for index in range(number)]


def synthetic(generator, number=120):
    """Metrics of random units whose expectation is known: see TRUTH."""
    found = Figures()
    table = found.table(names(number))
    table.mean("accuracy", generator.random(number) < 0.3, "", scale=100)
    unions = generator.exponential(100, number)
    table.ratio("ciou", unions * generator.random(number) ** 0.5, unions, "")
    true, predicted = generator.random((2, number)) < [[0.5], [0.4]]
    table.ratio("f1", true & predicted, true * 1.0 + predicted, "", 2.0, 0.0)
    other = found.table(names(60), name="other")
    other.mean("more", generator.normal(5, 2, 60), "")
    other.mean("again", generator.normal(1, 2, 60), "")
    found.total("total", ["more", "again"], "")
    return found


TRUTH = {"accuracy": 30, "ciou": 2 / 3, "f1": 2 * 0.2 / 0.9, "more": 5, "again": 1, "total": 6}


def test_intervals_hold_the_truth_in_95_of_100_data_sets():
    inside = dict.fromkeys(TRUTH, 0)
    rounds = 200
    for seed in range(rounds):
        intervals = bootstrap_intervals(synthetic(np.random.default_rng(seed)), 400)
        for name, truth in TRUTH.items():
            low, high = intervals[name]
            inside[name] += low <= truth <= high
    # Six standard deviations of 1.5 % would be too wide a range to see an interval of 90 %.
    assert all(0.91 <= hits / rounds <= 0.985 for hits in inside.values()), inside


def test_intervals_shrink_with_the_root_of_the_number():
    widths = []
    for number in (100, 10_000):
        figures = synthetic(np.random.default_rng(0), number)
        low, high = bootstrap_intervals(figures)["accuracy"]
        assert low < figures["accuracy"] < high
        widths.append(high - low)
    assert 8 < widths[0] / widths[1] < 12.5


def test_p_values_are_uniform_under_the_null_and_small_otherwise():
    found = {"accuracy": [], "ciou": [], "total": []}
    for seed in range(300):
        generator = np.random.default_rng(1000 + seed)
        one, other = synthetic(generator, 60), synthetic(generator, 60)
        for name, own in compare_figures(one, other, 200).items():
            if name in found:
                found[name].append(own.p_value)
    for name in ("ciou", "total"):
        assert kstest(found[name], "uniform").pvalue > 0.01
    # Of counts, p-values are discrete: never too small.
    for level in (0.01, 0.05, 0.2):
        assert np.mean(np.array(found["accuracy"]) <= level) <= level + 0.035
    generator = np.random.default_rng(0)
    one, other = Figures(), Figures()
    scores = generator.normal(0, 1, 100)
    one.table(names(100)).mean("x", scores + 0.1 + generator.normal(0, 0.1, 100), "")
    other.table(names(100)).mean("x", scores, "")
    difference = compare_figures(one, other)["x"]
    # The pairs share most of their variance: unpaired, 0.1 would be far from significant.
    assert difference.p_value == pytest.approx(1 / 1001) and difference.interval[0] > 0.05
    low, high = bootstrap_intervals(one)["x"]
    assert low < other["x"] < high


def test_the_interval_of_a_difference_holds_the_truth():
    inside, rounds = 0, 200
    for seed in range(rounds):
        generator = np.random.default_rng(seed)
        shared = generator.normal(0, 1, 80)
        runs = []
        for shift in (0.2, 0.0):
            figures = Figures()
            figures.table(names(80)).mean("x", shared + generator.normal(shift, 0.5, 80), "")
            runs.append(figures)
        low, high = compare_figures(*runs, 300)["x"].interval
        inside += low <= 0.2 <= high
    assert 0.91 <= inside / rounds <= 0.985


def test_equal_runs_do_not_differ():
    one, other = (synthetic(np.random.default_rng(3)) for _ in range(2))
    for own in compare_figures(one, other).values():
        assert (own.difference, own.interval, own.p_value) == (0, (0, 0), 1)
    one.constant("count", 4, "")
    other.constant("count", 1, "")
    own = compare_figures(one, other)["count"]
    assert (own.difference, own.interval, own.p_value) == (3, None, None)
    with pytest.raises(ValueError, match="expected the units of the first run"):
        compare_figures(one, synthetic(np.random.default_rng(3), 50))


def test_seeds():
    figures = synthetic(np.random.default_rng(5))
    assert bootstrap_intervals(figures) == bootstrap_intervals(figures)
    assert bootstrap_intervals(figures) != bootstrap_intervals(figures, seed=1)


def pope(rows):
    return pope_scores(*zip(*rows, strict=True))


def masks(rows):
    score = SegmentationScore()
    for predicted, target in rows:
        score.add(predicted, target)
    return score.figures(names(len(rows)))


def images_of_mme(rows):
    records = [
        MmeRecord("OCR", str(index), label, said)
        for index, pair in enumerate(rows)
        for label, said in zip(("yes", "no"), pair, strict=True)
    ]
    return mme_scores(records)


def bleu_2(rows):
    """BLEU-2 by hand of pairs of a text and one reference, without smoothing."""
    shared, given, lengths, references = [[], []], [[], []], [], []
    for text, reference in rows:
        lengths.append(len(text))
        references.append(len(reference))
        for order in (1, 2):
            own, other = (
                Counter(words[i : i + order] for i in range(len(words) - order + 1))
                for words in (text, reference)
            )
            shared[order - 1].append((own & other).total())
            given[order - 1].append(own.total())
    precisions = [sum(a) / sum(b) for a, b in zip(shared, given, strict=True)]
    brevity = min(1.0, math.exp(1 - sum(references) / sum(lengths)))
    value = brevity * math.sqrt(precisions[0] * precisions[1])
    found = Figures()
    table = found.table(names(len(rows)))
    table.bleu("bleu_2", value, shared, given, lengths, references, "")
    return found


def rows_of(kind, generator, number=40):
    words = np.array(["yes", "no"])
    if kind is bleu_2:
        texts = [
            "".join(generator.choice(list("abc"), generator.integers(2, 9)))
            for _ in range(2 * number)
        ]
        return list(zip(texts[:number], texts[number:], strict=True))
    if kind is masks:
        return [tuple(generator.random((2, 5, 5)) < generator.random()) for _ in range(number)]
    return [tuple(pair) for pair in words[generator.integers(2, size=(number, 2))]]


@pytest.mark.parametrize("kind", [pope, masks, images_of_mme, bleu_2])
def test_a_resample_is_scored_as_its_rows_are(kind):
    """The sums of a resample give what the metric gives of the repeated rows."""
    rows = rows_of(kind, np.random.default_rng(0))
    counts = _bootstrap_counts(np.random.default_rng([0, 0]), 200, len(rows)).astype(int)
    found = {}
    for own in counts:
        repeated = [row for row, often in zip(rows, own, strict=True) for _ in range(often)]
        for name, value in kind(repeated).items():
            found.setdefault(name, []).append(value)
    intervals = bootstrap_intervals(kind(rows), 200)
    assert intervals.keys() & {"f1", "total", "ciou", "bleu_2"}
    for name, interval in intervals.items():
        assert interval == pytest.approx(np.percentile(found[name], [2.5, 97.5]), abs=1e-9), name


def test_all_questions_of_vqav2_take_seconds():
    generator = np.random.default_rng(0)
    figures = Figures()
    table = figures.table(names(214_354))
    for name in ("accuracy", "number", "other", "yes/no"):
        table.mean(name, generator.random(214_354), "")
    start = time.process_time()
    assert len(bootstrap_intervals(figures, 100)) == 4
    # 0.3 s for a tenth of the resamples; Python loops over the rows would take a minute.
    assert time.process_time() - start < 5


def test_a_correlation_has_the_interval_of_fisher():
    generator = np.random.default_rng(5)
    x = generator.normal(size=400) + 1e4
    y = 0.6 * (x - 1e4) + 0.8 * generator.normal(size=400)
    value = float(np.corrcoef(x, y)[0, 1])
    found = Figures()
    found.table(names(400)).correlation("r", value, x, y, "correlation")
    sums = np.array([[(one.numerators.sum(), one.denominators.sum()) for one in
                      found.details["r"].ratios]])  # fmt: skip
    assert found.details["r"].values(sums)[0] == pytest.approx(value, abs=1e-12)
    low, high = bootstrap_intervals(found)["r"]
    # R. A. Fisher: atanh(r) has a standard deviation of 1 / sqrt(n - 3).
    ends = np.tanh(np.arctanh(value) + np.array([-1.96, 1.96]) / math.sqrt(397))
    assert [low, high] == pytest.approx(list(ends), abs=0.02)
    constant = Figures()
    constant.table(names(3)).correlation("r", math.nan, [1, 1, 1], [1, 2, 3], "correlation")
    assert "r" not in bootstrap_intervals(constant)
